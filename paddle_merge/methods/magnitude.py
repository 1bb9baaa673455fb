"""What is kept by the order of magnitudes: TIES' trimming as mergekit does it, and breadcrumbs (Davari & Belilovsky 2023).

Where only some of equally large elements can be kept, a stable sort decides: by descending magnitude for TIES, so those of
the lowest indices are kept; ascending for breadcrumbs, so those of the lowest indices count as smaller. (mergekit leaves it
to a sort that isn't stable beyond 16 elements, and so to chance.)

Selecting finds the magnitude at each cut, and where it has equals on both sides of the cut, the index at which the cut
falls among them: whether an element is kept depends on its value and index alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..backends.backend import Backend
from ..backends.budget import MemoryBudget
from .shared import selection
from .shared.base import Tensor
from .shared.rank_masks import keep_ranks
from .shared.rescale import l1_factors


class _Ranked:
    """What Magnitude and Breadcrumbs share."""

    density: tuple[float, ...]
    rescale: bool

    random = False
    descending = False
    cuts = 2  # of each model, at most

    @property
    def measures(self) -> bool:
        return any(density < 1.0 for density in self.density)

    def problems(self) -> list[str]:
        return []

    def memory(self, models: int, size: int, itemsize: int, budget: MemoryBudget) -> int:
        return selection.memory(self.cuts * models, size, itemsize, budget) if self.measures else 0

    def interval(self, model: int, size: int) -> tuple[int, int]:
        """(first, stop): the ascending ranks to keep."""
        raise NotImplementedError

    def prepare(self, tensor: Tensor, backend: Backend) -> Sequence[Any]:
        """Per model what is kept; None: all."""
        some = [model for model, density in enumerate(self.density) if density < 1.0]
        kept = keep_ranks(tensor, backend, {model: self.interval(model, tensor.size) for model in some}, self.descending)
        if self.rescale:
            factors = l1_factors(tensor, backend, some, lambda model, x, start: kept[model].apply(x, start, backend))
            kept = {model: replace(one, factor=backend.scalar(factors[model])) for model, one in kept.items()}
        return [kept.get(model) for model in range(tensor.models)]

    def apply(self, x: Any, start: int, state: Any, backend: Backend) -> Any:
        return x if state is None else state.apply(x, start, backend)


@dataclass(frozen=True)
class Magnitude(_Ranked):
    """density: of each model, the fraction to keep, the largest: exactly int(density n) elements and at least one; from 1 on
    all, from 0 down none. rescale: restore the L1 norm."""

    density: tuple[float, ...]
    rescale: bool = False

    descending = True
    cuts = 1

    def interval(self, model: int, size: int) -> tuple[int, int]:
        density = self.density[model]
        return size - max(1, int(density * size)) if density > 0 else size, size


@dataclass(frozen=True)
class Breadcrumbs(_Ranked):
    """density: of each model, the fraction to keep, after the fraction gamma that is largest was dropped; from 1 on all is
    kept, outliers too. Where too little would be left, fewer outliers are dropped. rescale: restore the L1 norm."""

    density: tuple[float, ...]
    gamma: tuple[float, ...]
    rescale: bool = False

    def interval(self, model: int, size: int) -> tuple[int, int]:
        count = max(0, int(self.density[model] * size))
        first = max(0, size - count - int(self.gamma[model] * size))
        return first, first + count
