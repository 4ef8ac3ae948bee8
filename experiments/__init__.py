"""Scripts that regenerate published comparisons, and the demonstration."""
