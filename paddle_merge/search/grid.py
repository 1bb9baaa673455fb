"""Make the points of a grid: every combination of the values of a recipe's free values."""

from __future__ import annotations

import itertools
import math

from ..errors import ConfigError
from .gene import Values
from .ranges import MOST_POINTS
from .space import RecipeSpace


def grid(space: RecipeSpace) -> list[Values]:
    """Return every combination of the values of the genes, the last gene varying fastest.

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
    count = math.prod(len(gene.points) for gene in space.genes)
    if count > MOST_POINTS:
        sizes = " x ".join(str(len(gene.points)) for gene in space.genes[:6]) + (" x ..." if space.genes[6:] else "")
        raise ConfigError(
            f"{space.places[0]}: the grid has {sizes} = {count:.3g} points, and more than {MOST_POINTS:,} are a search;"
            " python -m paddle_merge evolve takes it, with a section search"
        )
    return list(itertools.product(*(gene.points for gene in space.genes)))
