"""The scale of a training as the evidence has it, in the place of the optimizer's state."""
