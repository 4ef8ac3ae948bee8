"""Whether an answer suffers when the documents that a method names are left out of pre-training."""
