"""The command `inspect`: describe checkpoints from their headers."""
