"""The command that takes the layers of a model from several models at random."""
