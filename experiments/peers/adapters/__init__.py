"""What runs in the environment of another toolkit: a script for each, which scores what an exchange folder holds."""
