"""Keep elements by the rank of their magnitude within the tensor: exact counts, as mergekit's trimming and breadcrumbs.

Selecting finds the magnitude at each cut, and, where it has equals on both sides of the cut, the index at which the cut
falls among them. So whether an element is kept depends on its value and index alone, and one pass applies the mask.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from ...backends.backend import Backend
from ...backends.budget import MemoryBudget
from ...backends.formula import formula
from ...records import record
from . import selection
from .base import Tensor
from .sparsify import Keep, Mask


@formula(kernel="sparsifiers.between")
def between(xp: Any, x: Any, low: Any, high: Any, factor: Any) -> Any:
    """Return x * factor where low <= |x| <= high, else 0, (n,); a NaN stays NaN.

    x: (n,). low, high: (1,) in the dtype in which magnitudes are compared. factor: a scalar.
    """
    size = xp.abs(x).astype(low.dtype)
    return x * ((size >= low).astype(x.dtype) * (size <= high).astype(x.dtype) * factor)


@record(frozen=True)
class Kept:
    """Which elements of one model are kept, and the factor on them.

    parts: (stop, low, high) in order: from where the last part ended up to index `stop`, those of low <= |x| <= high.
    """

    parts: tuple[tuple[int, Any, Any], ...]
    factor: Any

    def apply(self, x: Any, start: int, backend: Backend) -> Any:
        """Return the block x (n,), which begins at element `start`, masked and multiplied. May reuse x's memory."""
        done, begin = [], 0
        for stop, low, high in self.parts:
            end = min(x.shape[0], stop - start)
            if end > begin:
                done.append(backend.apply(between, x[begin:end], low, high, self.factor))
                begin = end
        return backend.joined(x, done)

    def scaled(self, factor: float, backend: Backend) -> Kept:
        """Return the mask with a further factor."""
        return dataclasses.replace(self, factor=backend.scalar(factor))


@record(frozen=True)
class KeepRanks(Keep):
    """Keep an interval of ascending ranks of each model. A subclass says which.

    descending: of the elements equal to the smallest that is kept, keep those of the lowest indices, not of the highest.
    cuts: how many ends of the interval lie within the tensor, at most.
    """

    descending: ClassVar[bool] = False
    cuts: ClassVar[int] = 2

    @property
    def measures(self) -> bool:
        return any(density < 1.0 for density in self._all)

    def memory(self, models: int, size: int, itemsize: int, budget: MemoryBudget) -> int:
        return selection.memory(self.cuts * models, size, itemsize, budget) if self.measures else 0

    @abstractmethod
    def interval(self, model: int, size: int) -> tuple[int, int]:
        """Return (first, stop): the ascending ranks to keep of the model's `size` elements."""

    def masks(self, tensor: Tensor, backend: Backend, divide: bool) -> Sequence[Mask | None]:
        some = [model for model in range(tensor.models) if self.density_of(model) < 1.0]
        kept = keep_ranks(tensor, backend, {model: self.interval(model, tensor.size) for model in some}, self.descending)
        return [kept.get(model) for model in range(tensor.models)]


@record(frozen=True)
class _Bound:
    """A bound on magnitudes: `before` for elements up to `index`, `after` from there on."""

    before: Any
    index: int
    after: Any

    def at(self, index: int) -> Any:
        return self.before if index < self.index else self.after


def _kept(tensor: Tensor, backend: Backend, low: _Bound, high: _Bound) -> Kept:
    dtype = np.float32 if tensor.narrow else np.float64
    parts, start = [], 0
    for stop in sorted({low.index, high.index, tensor.size} - {0}):
        bounds = [backend.constant(np.array([bound.at(start)], dtype)) for bound in (low, high)]
        parts.append((stop, *bounds))
        start = stop
    return Kept(tuple(parts), backend.scalar(1.0))


def keep_nothing(tensor: Tensor, backend: Backend) -> Kept:
    """Return the mask that makes 0 of every element but NaN and Inf, which become NaN."""
    return _kept(tensor, backend, _Bound(np.inf, 0, np.inf), _Bound(-1.0, 0, -1.0))


def keep_ranks(
    tensor: Tensor, backend: Backend, intervals: dict[int, tuple[int, int]], descending: bool = False
) -> dict[int, Kept]:
    """Return, for each model, the mask of the elements of ascending ranks first..stop by magnitude.

    intervals: model -> (first, stop). descending: as KeepRanks.
    """
    cuts = [  # (model, whether it is the lower one, rank of the outermost element kept)
        (model, lower, rank)
        for model, (first, stop) in intervals.items()
        for lower, rank, needed in ((True, first, first > 0), (False, stop - 1, stop < tensor.size))
        if needed and first < stop
    ]
    found = selection.select_ranks(tensor, backend, [(model, rank) for model, _, rank in cuts])
    splits = []  # (place in cuts, how many of the equals lie before the index at which the cut falls among them)
    for place, ((_, lower, rank), cut) in enumerate(zip(cuts, found, strict=True)):
        under = rank - cut.below if lower else rank + 1 - cut.below  # equals that rank below the cut
        if 0 < under < cut.equal:
            splits.append((place, cut.equal - under if lower and descending else under))
    indices = selection.find_equals(tensor, backend, [(cuts[place][0], found[place].value, n) for place, n in splits])
    index = dict(zip((place for place, _ in splits), indices, strict=True))

    bounds: dict[tuple[int, bool], _Bound] = {}
    for place, ((model, lower, _), cut) in enumerate(zip(cuts, found, strict=True)):
        with np.errstate(over="ignore"):  # of the largest number it is Inf
            beyond = np.nextafter(cut.value, type(cut.value)(np.inf if lower else -1.0))  # keeps none of the equals
        if place not in index:
            bounds[model, lower] = _Bound(cut.value, 0, cut.value)
        elif lower and not descending:
            bounds[model, lower] = _Bound(beyond, index[place], cut.value)
        else:
            bounds[model, lower] = _Bound(cut.value, index[place], beyond)
    everything = {True: _Bound(0.0, 0, 0.0), False: _Bound(np.inf, 0, np.inf)}
    return {
        model: _kept(tensor, backend, *(bounds.get((model, lower), everything[lower]) for lower in (True, False)))
        if first < stop
        else keep_nothing(tensor, backend)
        for model, (first, stop) in intervals.items()
    }
