"""Attribution through a replaced head: a classifier fine-tuned from a language model."""
