"""Random search: every candidate is drawn uniformly. The baseline that any optimiser has to beat."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..gene import Gene, Values
from .optimizer import Losses, Optimizer, Settings


class Random:
    """Draws candidates."""

    def __init__(self, genes: Sequence[Gene], settings: Settings, first: Sequence[Values]):
        self._genes, self._first = genes, list(first)
        self._generator = np.random.Generator(np.random.Philox(key=settings.seed))
        self.population = settings.population or 10

    def ask(self) -> list[Values]:
        first, self._first = self._first[: self.population], self._first[self.population :]
        units = self._generator.random((self.population, len(self._genes)))
        drawn = [tuple(gene.value(float(unit)) for gene, unit in zip(self._genes, row, strict=True)) for row in units]
        return [*first, *drawn[len(first) :]]

    def tell(self, losses: Losses) -> None:
        """Learn nothing."""

    def mean(self) -> None:
        return None


def make(name: str, genes: Sequence[Gene], settings: Settings, first: Sequence[Values]) -> Optimizer:
    return Random(genes, settings, first)
