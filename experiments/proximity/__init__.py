"""How far fine-tuning moved a model, where, and whether its loss is a quadratic as far as that."""
