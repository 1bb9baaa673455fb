"""COMO-CatCMA with margin by the package `cmaes`: several CatCMA searches that share the front of two objectives.

Hamano et al. (2025), CatCMA with Margin for Single- and Multi-Objective Mixed-Variable Black-Box Optimization; Toure et al.
(2019), Uncrowded Hypervolume Improvement: COMO-CMA-ES. Every search is one point of the front, its incumbent. In turn each
is moved so that the incumbents of all together dominate more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...errors import ConfigError
from ..gene import Gene, Values
from .cat_cma import Domain, injected, raw_told
from .optimizer import Losses, Optimizer, Settings

POINTS = 10  # searches, and so points of the front, if there are evaluations enough
TINY = 1e-9  # by which losses that are all equal are told apart, relative
TURNS = 20  # generations that each of them should have


class COMO:
    """Searches numbers, integers and choices for two objectives.

    The first generation has the incumbents of the other searches too, and is larger than the later ones.
    """

    def __init__(self, made: Any, domain: Domain, first: Sequence[Values]):
        self._made, self._domain, self._first = made, domain, list(first)
        self._asked: list[Any] = []
        self._values: list[Values] = []

    @property
    def population(self) -> int:
        return int(self._made.ask_queue_size) or len(self._asked)  # the queue is empty while candidates are scored

    def ask(self) -> list[Values]:
        if not self._made.ask_queue_size:  # it was told nothing, and goes on only when it is
            return list(self._values)
        self._asked = [_copied(one) for one in self._made.ask_iter()]
        values = [self._domain.values(_within(one.x), one.z, one.c) for one in self._asked]
        places = [place for place, one in enumerate(self._asked) if one._kernel_id is not None]
        missing = [one for one in self._first if one not in values]  # others are incumbents of searches that begin there
        for place, given in zip(places, missing, strict=False):
            asked, values[place] = self._asked[place], given
            point = injected(self._domain, self._made.kernels[asked._kernel_id], given)
            self._asked[place] = type(asked)(*point, asked._kernel_id, None)
        self._first = missing[len(places) :]
        self._values = values
        return list(values)

    def tell(self, losses: Losses) -> None:
        told = []
        own = [tuple(loss) for asked, loss in zip(self._asked, losses, strict=True) if asked._kernel_id is not None]
        apart = TINY if len(set(own)) == 1 else 0.0  # the package divides by the spread of the losses
        for place, (asked, loss) in enumerate(zip(self._asked, losses, strict=True)):
            if asked._kernel_id is not None:
                asked = raw_told(self._domain, asked, self._made.kernels[asked._kernel_id])
            told.append((asked, [value + place * apart * max(1.0, abs(value)) for value in loss]))
        self._made.tell(told)

    def mean(self) -> None:
        return None


def _copied(asked: Any) -> Any:
    """Return a solution that the package doesn't change later: an incumbent's shares its memory with a mean."""
    raw = None if asked._v_raw is None else asked._v_raw.copy()
    return type(asked)(asked.x, asked.z, asked.c, raw, asked._kernel_id, asked._incumbent_id)


def _within(x: np.ndarray | None) -> np.ndarray | None:
    return None if x is None else np.clip(x, 0.0, 1.0)


def make(name: str, genes: Sequence[Gene], settings: Settings, first: Sequence[Values]) -> Optimizer:
    import cmaes

    if settings.objectives != 2:
        raise ConfigError(
            f"optimizer {name} takes two objectives, not {settings.objectives}; give nsga2, or cat_cma for one"
        )
    domain = Domain(genes)
    population = settings.population or 4 + math.floor(3 * math.log(len(genes)))
    kernels = max(2, min(POINTS, settings.evaluations // (TURNS * population)))
    generator = np.random.Generator(np.random.Philox(key=settings.seed))
    starts = [domain.start(values) for values in first[:kernels]]
    while len(starts) < kernels:
        starts.append(domain.start(tuple(gene.start if gene.choices else gene.value(generator.random()) for gene in genes)))
    common = {"population_size": population, "sigma": settings.first_step}
    made = [cmaes.CatCMAwM(**domain.spaces(), **start, **common) for start in starts]
    return COMO(cmaes.COMOCatCMAwM(**domain.spaces(), kernels=made, seed=settings.seed), domain, first)
