"""Which estimator of (H + λI)⁻¹ gives the right ranking, and at what cost: every method solves for the same H."""
