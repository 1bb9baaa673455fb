"""Checkpoints on disk: which tensors a checkpoint has, where their bytes are, and how they are read."""
