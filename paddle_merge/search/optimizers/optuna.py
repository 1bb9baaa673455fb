"""The samplers of the package Optuna: TPE for one objective, NSGA-II for several.

Optuna's own storage isn't used: a search that goes on replays the study, in which the same losses give the same candidates.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from ...recipe.recipe import Value
from ..gene import Gene, Values
from .optimizer import Losses, Optimizer, Settings

POPULATION = 10


class Optuna:
    """Asks a study for a generation of trials at a time."""

    def __init__(self, study: Any, spaces: dict[str, Any], genes: Sequence[Gene], population: int):
        self._study, self._spaces, self._genes, self.population = study, spaces, genes, population
        self._trials: list[Any] = []

    def ask(self) -> list[Values]:
        self._trials = [self._study.ask(self._spaces) for _ in range(self.population)]
        return [tuple(self._value(place, trial) for place in range(len(self._genes))) for trial in self._trials]

    def tell(self, losses: Losses) -> None:
        for trial, loss in zip(self._trials, losses, strict=True):
            self._study.tell(trial, [float(value) for value in loss])

    def mean(self) -> None:
        return None

    def _value(self, place: int, trial: Any) -> Value:
        gene, found = self._genes[place], trial.params[str(place)]
        return gene.choices[found] if gene.choices else int(found) if gene.integer else gene.value(found)


def make(name: str, genes: Sequence[Gene], settings: Settings, first: Sequence[Values]) -> Optimizer:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    population = settings.population or POPULATION
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # said of constant_liar
        sampler: Any
        if settings.objectives > 1:
            sampler = optuna.samplers.NSGAIISampler(seed=settings.seed, population_size=population)
        else:  # a candidate that isn't scored yet counts as bad, so that those of one generation differ
            sampler = optuna.samplers.TPESampler(seed=settings.seed, multivariate=True, constant_liar=True)
    study = optuna.create_study(sampler=sampler, directions=["minimize"] * settings.objectives)
    for values in first:
        study.enqueue_trial(
            {str(place): _given(gene, value) for place, (gene, value) in enumerate(zip(genes, values, strict=True))}
        )
    return Optuna(study, {str(place): _space(gene) for place, gene in enumerate(genes)}, genes, population)


def _space(gene: Gene) -> Any:
    """Return the distribution of a gene: numbers lie between 0 and 1, and a choice is its place."""
    from optuna import distributions

    if gene.choices:
        return distributions.CategoricalDistribution(range(len(gene.choices)))
    if gene.integer:
        return distributions.IntDistribution(int(gene.low), int(gene.high), log=gene.log, step=int(gene.step) or 1)
    return distributions.FloatDistribution(0.0, 1.0)


def _given(gene: Gene, value: Value) -> Any:
    if gene.choices:
        return gene.place(value)
    return int(value) if gene.integer else min(max(gene.unit(value), 0.0), 1.0)
