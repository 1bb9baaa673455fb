"""The command line: one package per command."""
