"""The command `diff`: compare the numbers of two checkpoints."""
