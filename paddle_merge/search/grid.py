"""Make the points of a grid: every combination of the values of a recipe's free values."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from ..errors import ConfigError
from . import simplex
from .gene import Gene, Values
from .ranges import MOST_POINTS
from .space import RecipeSpace


def grid(space: RecipeSpace) -> list[Values]:
    """Return every combination of the values of the genes, the last gene varying fastest; weights of a simplex together.

    Raises ConfigError, by line and column, for numbers of which it isn't said which values they have; and if there are more
    points than MOST_POINTS.
    """
    endless = {at: gene for gene, at in zip(space.genes, space.places, strict=True) if not gene.points}
    if endless:
        raise ConfigError(
            [
                f"{at}: a sweep needs the values: {{search: [{gene.low:g}, {gene.high:g}], step: ...}}, low:high:step or"
                " {choose: [...]}"
                for at, gene in endless.items()
            ]
        )
    together = simplex.axes(space.genes)
    counts = [_count(space.genes, places) for places in together]
    count = math.prod(counts)
    if count > MOST_POINTS:
        sizes = " x ".join(map(str, counts[:6])) + (" x ..." if counts[6:] else "")
        instead = "python -m paddle_merge evolve takes it, with a section search"
        if any(gene.simplex for gene in space.genes):
            instead = "give the simplex fewer parts"
        raise ConfigError(
            f"{space.places[0]}: the grid has {sizes} = {count:.3g} points, and more than {MOST_POINTS:,} are a search;"
            f" {instead}"
        )
    order = sorted(range(len(space.genes)), key=[place for places in together for place in places].__getitem__)
    found = []
    for parts in itertools.product(*(_values(space.genes, places) for places in together)):
        values = [value for part in parts for value in part]
        found.append(tuple(values[place] for place in order))
    return found


def _count(genes: Sequence[Gene], places: Sequence[int]) -> int:
    """Return how many values genes that vary together have."""
    first = genes[places[0]]
    return simplex.size(simplex.parts_of(first), len(places)) if first.simplex else len(first.points)


def _values(genes: Sequence[Gene], places: Sequence[int]) -> list[Values]:
    """Return the values of genes that vary together."""
    first = genes[places[0]]
    if first.simplex:
        return list(simplex.lattice(simplex.parts_of(first), len(places)))
    return [(value,) for value in first.points]
