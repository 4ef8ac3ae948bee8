"""`make demo`: a small world, a language model trained on it in two stages, and the sources of its answers."""
