"""What several experiments share: training, guarded folders, command lines."""
