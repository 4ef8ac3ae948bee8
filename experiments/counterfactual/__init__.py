"""Retraining both stages without some documents: the truth that influence claims to foretell."""
