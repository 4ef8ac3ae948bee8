"""Measures of a method: rank correlation, retrieval of known sources, agreement with retraining, intervals."""
