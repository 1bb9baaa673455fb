"""Lattices over a simplex: weights of a list of models that are 0 or more and add up to 1, `{simplex: N}` in place of each.

Each weight is a multiple of 1/N, so there are (N + n - 1 choose n - 1) points for n models. Only a sweep takes them: an
optimiser moves each value on its own.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

from ..errors import ConfigError
from .gene import Gene
from .ranges import spaced


def size(parts: int, count: int) -> int:
    """Return how many points the lattice of `count` weights has. parts: N."""
    return math.comb(parts + count - 1, count - 1)


def lattice(parts: int, count: int) -> Iterator[tuple[float, ...]]:
    """Yield the points of the lattice, (count,), the first weight ascending. parts: N."""
    values = spaced(0.0, 1.0, 1.0 / parts)
    for cuts in itertools.combinations_with_replacement(range(parts + 1), count - 1):
        yield tuple(values[end - begin] for begin, end in itertools.pairwise((0, *cuts, parts)))


def parts_of(gene: Gene) -> int:
    """Return N of a gene of a simplex."""
    return len(gene.points) - 1


def axes(genes: Sequence[Gene]) -> list[tuple[int, ...]]:
    """Return the places of genes that vary together: each on its own, but for those of one simplex."""
    found: dict[object, list[int]] = {}
    for place, gene in enumerate(genes):
        found.setdefault(gene.simplex or place, []).append(place)
    return [tuple(places) for places in found.values()]


def refuse(genes: Sequence[Gene]) -> None:
    """Raise ConfigError if genes are those of a simplex, for a search by an optimiser."""
    if found := dict.fromkeys(gene.simplex for gene in genes if gene.simplex):
        raise ConfigError(
            [
                f"{at}: {{simplex: ...}} is for a sweep; a search takes {{search: [0, 1]}} for each weight, with"
                " merge_method linear, which divides by their sum"
                for at in found
            ]
        )
