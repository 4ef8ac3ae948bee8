"""Phase timings of msif and of reference tools, as ratios to a plain training step."""
