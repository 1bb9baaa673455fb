"""The command expert-stats: how much each expert of a mixture is used."""
