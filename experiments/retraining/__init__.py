"""Training both stages again without some documents: what influence claims to foretell, for any two-stage model."""
