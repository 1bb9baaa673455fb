"""The command soup: averages of the checkpoints of a training run."""
