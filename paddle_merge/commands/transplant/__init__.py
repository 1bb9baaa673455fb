"""The command that gives a model the tokenizer of another."""
