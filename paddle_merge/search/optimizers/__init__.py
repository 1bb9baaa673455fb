"""Optimisers: what proposes candidates and learns from their losses. One optimiser, one file.

All are generation-synchronous: they ask for a whole generation, and are told all of its losses at once, so that the result
doesn't depend on how many candidates are scored at the same time. With the same seed and the same losses they ask for the
same candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from ...errors import ConfigError
from ..space import Gene, Values
from .optimizer import Optimizer, Settings


def make(name: str, genes: Sequence[Gene], settings: Settings, first: Sequence[Values] = ()) -> Optimizer:
    """Return an optimiser. name: one of spec.OPTIMIZERS. first: candidates that are in the first generation.

    Raises ConfigError if it can't search these genes, or its package is not installed.
    """
    module = import_module(f".{'cma' if name == 'sep_cma' else name}", __package__)
    try:
        made: Optimizer = module.make(name, genes, settings, first)
    except ImportError as error:
        raise ConfigError(
            f'optimizer {name} needs the package {error.name}: python -m pip install "paddle_merge[search]"'
        ) from None
    return made


def suited(genes: Sequence[Gene], objectives: int) -> str:
    """Return the name of an optimiser for these genes."""
    if objectives > 1:
        return "nsga2"
    if any(gene.choices or gene.integer for gene in genes):
        return "cat_cma"
    return "sep_cma" if len(genes) > LARGE else "cma"


LARGE = 200  # genes, from which on a full covariance matrix has more entries than evaluations can determine
