"""What several experiments share: training, what a run keeps, methods, command lines."""
