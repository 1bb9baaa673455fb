"""The command `verify`: check whether a folder is still what a merge wrote."""
