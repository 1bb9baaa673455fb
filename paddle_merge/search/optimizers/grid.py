"""A grid: every value of each choice, integer and number with a step. Other numbers are evenly spaced, as many as the
evaluations allow."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from ...errors import ConfigError
from ...recipe.recipe import Value
from ..gene import Gene, Values, settled
from .optimizer import Losses, Optimizer, Settings


class Grid:
    """Asks for a whole grid at once."""

    def __init__(self, points: Sequence[Values]):
        self._left, self.population = list(points), len(points)

    def ask(self) -> list[Values]:
        asked, self._left = self._left, []
        return asked

    def tell(self, losses: Losses) -> None:
        """Learn nothing."""

    def mean(self) -> None:
        return None


def points(genes: Sequence[Gene], most: int) -> list[Values]:
    """Return the points of a grid, `most` at most: the last gene varies fastest.

    Of numbers each has as many values as all can have, and the first ones one more where that fits; both bounds are among
    them, and a number that can only have one value has its start. Raises ConfigError if choices, integers and
    steps alone make more points.
    """
    counts = [_count(gene) for gene in genes]
    needed = math.prod(count for count in counts if count)
    if needed > most:
        raise ConfigError(
            f"optimizer grid: the choices, integers and steps alone make {needed:,} candidates, and there may be {most:,}"
            " evaluations; give more evaluations, fewer values, or another optimizer"
        )
    numbers = [place for place, count in enumerate(counts) if not count]
    each = 1
    while numbers and needed * (each + 1) ** len(numbers) <= most:
        each += 1
    for place in numbers:
        counts[place] = each
    for place in numbers:
        if math.prod(counts) // each * (each + 1) <= most:
            counts[place] += 1
    axes = [_values(gene, count) for gene, count in zip(genes, counts, strict=True)]
    return list(dict.fromkeys(settled(genes, values) for values in itertools.product(*axes)))


def _count(gene: Gene) -> int:
    """Return how many values a choice, an integer or a number with a step has; 0 for another number."""
    return len(gene.points) or (int(gene.high) - int(gene.low) + 1 if gene.integer else 0)


def _values(gene: Gene, count: int) -> list[Value]:
    if gene.points:
        return list(gene.points)
    if gene.integer:
        return list(range(int(gene.low), int(gene.high) + 1))
    return [gene.start] if count == 1 else [gene.value(place / (count - 1)) for place in range(count)]


def make(name: str, genes: Sequence[Gene], settings: Settings, first: Sequence[Values]) -> Optimizer:
    first = list(first)[: settings.evaluations - 1]
    found = points(genes, settings.evaluations - len(first))
    return Grid([*first, *(values for values in found if values not in set(first))])
