"""Align models with different vocabularies token by token.

tokens         read a tokenizer's vocabulary from its files; form the union of several
vocabularies   the vocabularies of all inputs of a recipe, and that of an output
entry          a tensor that is made of rows of others
rows           which rows of the inputs become which rows of the output
align          which tensors have a row per token, and what the output's are made of
aligned        compute elements of an aligned tensor
write          the files of the output's tokenizer
texts          tokens of different tokenizers that stand for the same text
missing        what rows of tokens are made of that no input has
pursuit        rows as sparse combinations of others (orthogonal matching pursuit)
completed      compute elements of a tensor with such rows
given          rows that a recipe gives to tokens itself
ids            token ids in config.json and generation_config.json
"""
