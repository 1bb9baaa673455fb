"""Search for recipes: score candidates, sweep parameters over grids, and evolve them.

contract        what an evaluator gets and gives
space           the free values of a recipe, and the recipe of a candidate's values
paths           paths of layers through several models; path_file reads what a file says of them; residual says into which
                tensors factors on the residual stream are folded
spaces          which of these a file describes
spec            what a search file asks for
merger          merges of one search after another, in memory
evaluators/     one kind of evaluator, one file
optimizers/     one optimiser, one file
"""
