"""CMA-ES by the package `cmaes`: with a full covariance matrix, or a diagonal one (SepCMA) for large spaces.

Hansen (2016), The CMA Evolution Strategy: A Tutorial; Ros and Hansen (2008) for the diagonal one; Nomura et al. (2023) for
the adaptation of the learning rate to noisy losses. As in Akiba et al. (2025), Evolutionary Optimization of Model Merging
Recipes, a search begins in the middle of the bounds with steps of 1/6 of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...errors import ConfigError
from ..gene import Gene, Values
from .optimizer import Losses, Optimizer, Settings


class CMA:
    """Searches numbers, each between 0 and 1 in the optimiser's own coordinates."""

    def __init__(self, made: Any, genes: Sequence[Gene], first: Sequence[Values]):
        self._cma, self._genes, self._first = made, genes, list(first)
        self._asked: list[np.ndarray] = []

    @property
    def population(self) -> int:
        return int(self._cma.population_size)

    def ask(self) -> list[Values]:
        self._asked = [self._cma.ask() for _ in range(self.population)]
        for number, values in enumerate(self._first[: self.population]):
            self._asked[number] = np.array([gene.unit(value) for gene, value in zip(self._genes, values, strict=True)])
        self._first = []
        return [self._values(units) for units in self._asked]

    def tell(self, losses: Losses) -> None:
        self._cma.tell([(units, float(loss[0])) for units, loss in zip(self._asked, losses, strict=True)])

    def mean(self) -> Values:
        return self._values(np.clip(self._cma.mean, 0.0, 1.0))

    def _values(self, units: np.ndarray) -> Values:
        return tuple(gene.value(float(unit)) for gene, unit in zip(self._genes, units, strict=True))


def make(name: str, genes: Sequence[Gene], settings: Settings, first: Sequence[Values]) -> Optimizer:
    import cmaes

    if settings.objectives > 1:
        raise ConfigError(f"optimizer {name} takes one objective; give nsga2 for several")
    choices = [gene.name for gene in genes if gene.choices]
    if choices:
        raise ConfigError(f"optimizer {name} searches numbers only, and {choices[0]!r} is a choice; give cat_cma")
    start = np.array([gene.unit(gene.start) for gene in genes])
    bounds = np.array([[0.0, 1.0]] * len(genes))
    common = {
        "mean": start,
        "sigma": settings.first_step,
        "bounds": bounds,
        "seed": settings.seed,
        "population_size": settings.population,
    }
    if name == "sep_cma":
        return CMA(cmaes.SepCMA(**common), genes, first)
    if len(genes) == 1:  # cmaes needs two dimensions: the second has no effect
        return _Single(
            cmaes.CMA(**{**common, "mean": np.array([*start, 0.5]), "bounds": np.array([[0.0, 1.0]] * 2)}), genes, first
        )
    return CMA(cmaes.CMA(**common, lr_adapt=settings.noisy), genes, first)


class _Single(CMA):
    """One number, and a dimension that has no effect."""

    def _values(self, units: np.ndarray) -> Values:
        return super()._values(units[:1])

    def ask(self) -> list[Values]:
        first, self._first = self._first, []
        asked = super().ask()
        for number, values in enumerate(first[: self.population]):
            self._asked[number] = np.array([self._genes[0].unit(values[0]), 0.5])
            asked[number] = values
        return asked
