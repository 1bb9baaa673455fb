"""What several methods need: base classes, selection, masks by rank, rows, angles, whole matrices."""
