"""Write the output folder: all of it, or nothing that looks like a checkpoint."""
