"""Exact quantiles of |x| over a whole tensor, in blocks, without sorting it: usually in one pass.

A sample brackets the wanted order statistics between two of its values. One pass then counts what lies below, at and
between the two, and collects the few values between; if the order statistics are among those, they are exact. If not (an
unlucky sample, or more values between than fit, as with a hundred million elements whose rows differ much), the pass has
still narrowed the candidates, and the next one uses a bracket inside them. Every failed pass rules out at least one distinct
value, so it ends; equal values cost nothing, as the two ends of the bracket are counted apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .engine import Room
    from .methods import Tensor

SMALL = 1 << 14  # up to this size, take all values instead of a sample
CAPACITY = 1 << 22  # values a pass may collect, per model
MARGIN = 4.0  # standard errors of the sample to each side


@dataclass(frozen=True)
class Quantile:
    """threshold: the quantile, a NumPy scalar in the dtype magnitudes are compared in: float32, or float64 for float64
    storage. total: sum of |x|. kept: sum of |x| over |x| >= threshold. Both float64.
    """

    threshold: Any
    total: float
    kept: float


@dataclass
class Bracket:
    """One model's search: what a pass over its blocks counts and collects. lo and hi are magnitudes, lo <= hi.

    limits: the order statistics are known to lie within them (inclusive).
    stride: collect every stride-th of the values strictly between lo and hi.
    counts (int64): [below lo, equal to lo, strictly between, equal to hi (if not lo), collected]; NaN counts as infinite.
    sums (float64) of |x|: [all, at or above hi, equal to lo].
    Comparisons are in `dtype`; values are collected, and summed, as they are computed.
    """

    dtype: Any
    compute: Any
    capacity: int
    limits: tuple[float, float]
    lo: float
    hi: float
    stride: int = 1
    counts: np.ndarray = field(default_factory=lambda: np.zeros(5, np.int64))
    sums: np.ndarray = field(default_factory=lambda: np.zeros(3, np.float64))

    def __post_init__(self) -> None:
        self.bounds = np.array([self.lo, self.hi], self.dtype)
        self.values = np.empty(self.capacity, self.compute)

    @property
    def between(self) -> np.ndarray:
        """The collected values, ascending once `value` may be asked."""
        return self.values[: self.counts[4]]

    def value(self, rank: int) -> Any | None:
        """The rank-th smallest magnitude (from 0), or None if this pass hasn't pinned it down."""
        below, at_lo, inside, at_hi, collected = self.counts
        rank -= below
        if 0 <= rank < at_lo:
            return self.bounds[0]
        rank -= at_lo
        if 0 <= rank < inside:
            return self.dtype(self.between[rank]) if collected == inside else None
        rank -= inside
        return self.bounds[1] if 0 <= rank < at_hi else None

    def sum_from(self, threshold: Any) -> float:
        """The sum of |x| over |x| >= threshold, for lo <= threshold <= hi and all values between collected."""
        kept = self.between[np.searchsorted(self.between.astype(self.dtype, copy=False), threshold) :]
        result = float(self.sums[1])
        if len(kept):
            with np.errstate(over="ignore"):
                result += _sum_in_order(kept)
        if threshold <= self.bounds[0] < self.bounds[1]:
            result += float(self.sums[2])
        return result

    def next(self, ranks: tuple[int, int]) -> Bracket:
        """The bracket for another pass, after this one failed to pin the ranks down."""
        below, at_lo, inside, at_hi, collected = map(int, self.counts)
        if ranks[0] < below:
            return self._at((self.limits[0], self.lo), self.limits[0], self.lo)
        if ranks[1] >= below + at_lo + inside + at_hi:
            return self._at((self.hi, self.limits[1]), self.hi, self.limits[1])
        limits = self.lo, self.hi
        if collected < inside and self.stride == 1:  # too many, and what was collected is the tensor's beginning only
            return self._at(limits, *limits, stride=math.ceil(inside / self.capacity))
        shares = [(rank - below - at_lo) / inside for rank in ranks]
        return self._at(limits, *_around(self.between[:, None], shares, limits))

    def narrowed_to(self, lower: float, upper: float) -> Bracket:
        """The bracket whose ends are the order statistics themselves: nothing lies between neighbours."""
        return self._at((lower, upper), lower, upper)

    def _at(self, limits: tuple[float, float], lo: float, hi: float, stride: int = 1) -> Bracket:
        return Bracket(self.dtype, self.compute, self.capacity, limits, lo, hi, stride)


def select_quantile(tensor: Tensor, backend: Any, q: float, capacity: int = CAPACITY) -> list[Quantile]:
    """Per model, what np.quantile(|x|, q) gives (linear interpolation, NumPy 1.26's arithmetic), and the sums around it.

    q in [0, 1]; the tensor is not empty.
    """
    dtype = np.float32 if tensor.narrow else np.float64
    make = partial(Bracket, dtype, backend.dtype, min(capacity, tensor.size))
    position = (tensor.size - 1) * q
    low = math.floor(position)
    ranks = low, min(low + 1, tensor.size - 1)
    searches = _first_brackets(tensor, ranks, dtype, make)
    done: dict[int, Quantile] = {}
    together = max(1, backend.room.selecting // max(1, searches[0].values.nbytes))
    while len(done) < tensor.models:
        wanted = [model for model in range(tensor.models) if model not in done][:together]
        for _, x in tensor.deltas():
            for model in wanted:
                backend.count_between(x[model], searches[model])
        for model in wanted:
            search = searches[model]
            search.between.sort()
            lower, upper = (search.value(rank) for rank in ranks)
            if lower is None or upper is None:
                searches[model] = search.next(ranks)
            elif search.counts[4] < search.counts[2]:  # known, but not all that lies between, which sum_from needs
                searches[model] = search.narrowed_to(float(lower), float(upper))
            else:
                threshold = _interpolate(lower, upper, position - low)
                done[model] = Quantile(threshold, float(search.sums[0]), search.sum_from(threshold))
                search.values = np.empty(0, search.compute)
    return [done[model] for model in range(tensor.models)]


def sampled(size: int) -> int:
    """How many elements to sample: n^(2/3) balances the work on the sample against that on the values between."""
    return int(size ** (2 / 3))


def memory(models: int, size: int, itemsize: int, room: Room) -> int:
    """Bytes that selecting takes, at most, beside the blocks: samples as they are read, widened and put together; the values
    between; a copy of one model's while a bracket is narrowed."""
    values = min(CAPACITY, size) * itemsize
    together = min(models, max(1, room.selecting // max(1, values)))
    samples = min(size, sampled(size)) if size > SMALL else 0
    return samples * ((models + 1) * (8 + itemsize) + (models + 2) * itemsize) + (together + 1) * values


def _sum_in_order(values: np.ndarray) -> float:
    """In float64, one after the other, unlike np.sum's, so that it is the same on any machine. Of at least one."""
    result = np.zeros(1)
    for start in range(0, len(values), SMALL):
        result = np.cumsum(np.concatenate([result[-1:], values[start : start + SMALL]]), dtype=np.float64)
    return float(result[-1])


def _interpolate(lower: Any, upper: Any, fraction: float) -> Any:
    """NumPy 1.26's lerp: the difference in the values' dtype, the rest in float64, the result in the values' dtype."""
    if not np.isfinite(upper):
        return upper
    difference = float(upper - lower)
    exact = float(lower) + difference * fraction if fraction < 0.5 else float(upper) - difference * (1.0 - fraction)
    return lower.dtype.type(exact)


def _first_brackets(tensor: Tensor, ranks: tuple[int, int], dtype: Any, make: Callable[..., Bracket]) -> list[Bracket]:
    whole = -1.0, math.inf
    if tensor.size <= SMALL:
        return [make(whole, *whole) for _ in range(tensor.models)]
    samples = tensor.sample(sampled(tensor.size))
    samples = np.abs(samples, out=samples).astype(dtype, copy=False)
    shares = [rank / tensor.size for rank in ranks]
    return [make(whole, *_around(sample, shares, whole)) for sample in samples]


def _around(sample: np.ndarray, shares: list[float], limits: tuple[float, float]) -> tuple[float, float]:
    """Two of the sample's values (or limits) that, but for bad luck, hold the given shares between them.

    sample (clusters, width): elements that lie side by side in the tensor are alike, so the standard error of a share is
    taken from how much it varies between clusters.
    """
    ascending = np.sort(sample, axis=None)
    count = len(ascending)
    middle = ascending[min(int(shares[0] * count), count - 1)]
    if sample.shape[1] > 1:
        deviation = float((sample < middle).mean(1).std())
    else:  # maybe millions, so without another array of them
        share = np.count_nonzero(sample < middle) / len(sample)
        deviation = math.sqrt(share * (1 - share))
    error = deviation / math.sqrt(len(sample))
    margin = MARGIN * error * count + 2.0
    first, last = math.floor(shares[0] * count - margin), math.ceil(shares[1] * count + margin)
    if first < 0 and last >= count:  # a margin that rules nothing out would not end the search
        first = last = min(int(shares[0] * count), count - 1)
    lo = float(ascending[first]) if first >= 0 else limits[0]
    hi = float(ascending[last]) if last < count else limits[1]
    return (lo, hi) if lo == lo and hi == hi else limits
