"""Optimisers: what proposes candidates and learns from their losses. One optimiser, one file.

All are generation-synchronous: they ask for a whole generation, and are told all of its losses at once, so that the result
doesn't depend on how many candidates are scored at the same time. With the same seed and the same losses they ask for the
same candidates.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib import import_module

from threadpoolctl import ThreadpoolController

from ...errors import ConfigError
from ..gene import Gene, Values, settled
from .optimizer import Losses, Optimizer, Settings

log = logging.getLogger("paddle_merge")
USED_BY = {  # key of `search` -> the optimisers that it has an effect on
    "population": ("cma", "sep_cma", "cat_cma", "nsga2", "como", "random", "optuna"),
    "sigma": ("cma", "sep_cma", "cat_cma", "como"),
    "noisy": ("cma",),
}
LARGE = 200  # genes, from which on a full covariance matrix has more entries than evaluations can determine


def make(name: str, genes: Sequence[Gene], settings: Settings, first: Sequence[Values] = ()) -> Optimizer:
    """Return an optimiser. name: one of spec.OPTIMIZERS. first: candidates that are in the first generation.

    Raises ConfigError if it can't search these genes, or its package is not installed.
    """
    given = {"population": settings.population is not None, "sigma": settings.sigma is not None, "noisy": settings.noisy}
    for key in [key for key, is_given in given.items() if is_given and name not in USED_BY[key]]:
        log.warning("%s has no effect with optimizer %s; %s would use it", key, name, ", ".join(USED_BY[key]))
    module = import_module(f".{'cma' if name == 'sep_cma' else name}", __package__)
    first = list(dict.fromkeys(settled(genes, values) for values in first))
    try:
        made: Optimizer = module.make(name, genes, settings, first)
    except ImportError as error:
        extra = "optuna" if name == "optuna" else "search"
        raise ConfigError(
            f'optimizer {name} needs the package {error.name}: python -m pip install "paddle_merge[{extra}]"'
        ) from None
    return _Replayable(made, genes)


class _Replayable:
    """Lets an optimiser work on one thread, for products of matrices depend on the number of threads in their last bits; and
    gives candidates in which genes without an effect are at their start."""

    def __init__(self, made: Optimizer, genes: Sequence[Gene]):
        self._made, self._genes = made, genes
        self._threads = ThreadpoolController()

    @property
    def population(self) -> int:
        return self._made.population

    def ask(self) -> list[Values]:
        with self._threads.limit(limits=1, user_api="blas"):
            return [settled(self._genes, values) for values in self._made.ask()]

    def tell(self, losses: Losses) -> None:
        with self._threads.limit(limits=1, user_api="blas"):
            self._made.tell(losses)

    def mean(self) -> Values | None:
        mean = self._made.mean()
        return mean if mean is None else settled(self._genes, mean)


def suited(genes: Sequence[Gene], objectives: int) -> str:
    """Return the name of an optimiser for these genes. objectives: their number."""
    if objectives > 1:
        return "nsga2"
    if any(gene.choices or gene.integer for gene in genes):
        return "cat_cma"
    return "sep_cma" if len(genes) > LARGE else "cma"
