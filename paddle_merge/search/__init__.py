"""Search for recipes: score candidates, sweep parameters over grids, and evolve them.

contract        what an evaluator gets and gives
space           the free values of a recipe, and the recipe of a candidate's values
spec            what a search file asks for
merger          merges of one search after another, in memory
evaluators/     one kind of evaluator, one file
optimizers/     one optimiser, one file
"""
