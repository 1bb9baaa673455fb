"""The command `evolve`."""
