"""Search order statistics of |x| between two bounds: what one pass over a tensor counts and collects (selection.py)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ...records import record

MARGIN = 4.0  # standard errors of the sample on each side
STEP = 1 << 14  # values that are added up at a time


@record(frozen=True)
class Cut:
    """An order statistic of |x|. value: a NumPy scalar, as Quantile.threshold. below, equal: how many |x| are below it, and
    equal to it."""

    value: Any
    below: int
    equal: int


@dataclass
class Bracket:
    """The search in one model: what a pass over its blocks counts and collects. lo and hi are magnitudes, lo <= hi.

    limits: bounds, inclusive, within which the order statistics are known to lie.
    stride: collect every stride-th of the values strictly between lo and hi.
    counts (int64): [below lo, equal to lo, strictly between, equal to hi (if not lo), collected]; NaN counts as infinite.
    sums (float64) of |x|: [all, at or above hi, equal to lo], as many as are needed (`needed_sums`).
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
        """The collected values; ascending once they are sorted, after the pass."""
        return self.values[: self.counts[4]]

    def value(self, rank: int) -> Any | None:
        """Return the rank-th smallest magnitude (from 0); None if this pass hasn't determined it."""
        below, at_lo, inside, at_hi, collected = self.counts.tolist()
        rank -= below
        if 0 <= rank < at_lo:
            return self.bounds[0]
        rank -= at_lo
        if 0 <= rank < inside:
            return self.dtype(self.between[rank]) if collected == inside else None
        rank -= inside
        return self.bounds[1] if 0 <= rank < at_hi else None

    def cut(self, value: Any) -> Cut:
        """Return a value that `value` returned as a Cut, with the counts."""
        below, at_lo, inside, at_hi, _ = map(int, self.counts)
        if value == self.bounds[0]:
            return Cut(value, below, at_lo)
        if value == self.bounds[1]:
            return Cut(value, below + at_lo + inside, at_hi)
        between = self.between.astype(self.dtype, copy=False)
        first, last = (int(np.searchsorted(between, value, side)) for side in ("left", "right"))
        return Cut(value, below + at_lo + first, last - first)

    def sum_from(self, threshold: Any) -> float:
        """Return the sum of |x| over |x| >= threshold. Needs lo <= threshold <= hi, and all values between collected."""
        between = self.between
        kept = between[between.astype(self.dtype, copy=False).searchsorted(threshold) :]
        result = float(self.sums[1])
        if len(kept):
            result += _sum_in_order(kept)
        if threshold <= self.bounds[0] < self.bounds[1]:
            result += float(self.sums[2]) if len(self.sums) == 3 else int(self.counts[1]) * float(self.bounds[0])
        return result

    def next(self, ranks: tuple[int, int]) -> Bracket:
        """Return the bracket for another pass, after this one failed to determine the ranks."""
        below, at_lo, inside, at_hi, collected = map(int, self.counts)
        if ranks[0] < below:
            return self._at((self.limits[0], self.lo), self.limits[0], self.lo)
        if ranks[1] >= below + at_lo + inside + at_hi:
            return self._at((self.hi, self.limits[1]), self.hi, self.limits[1])
        limits = self.lo, self.hi
        if collected < inside and self.stride == 1:  # too many, and what was collected is the tensor's beginning only
            return self._at(limits, *limits, stride=math.ceil(inside / self.capacity))
        shares = [(rank - below - at_lo) / inside for rank in ranks]
        return self._at(limits, *around(self.between[:, None], shares, limits))

    def narrowed_to(self, lower: float, upper: float) -> Bracket:
        """Return the bracket whose ends are two neighbouring order statistics, so that nothing lies between them."""
        return self._at((lower, upper), lower, upper)

    def _at(self, limits: tuple[float, float], lo: float, hi: float, stride: int = 1) -> Bracket:
        counts, sums = np.zeros_like(self.counts), np.zeros_like(self.sums)
        return replace(self, limits=limits, lo=lo, hi=hi, stride=stride, counts=counts, sums=sums)


def needed_sums(compute: Any) -> int:
    """Return how many of a Bracket's sums a pass adds up: of float32 not those equal to lo, as float64 holds their number
    times lo exactly."""
    return 2 if compute == np.float32 else 3


def _sum_in_order(values: np.ndarray) -> float:
    """Return the sum of at least one value, added in order in float64, so that it is the same on any machine (unlike
    np.sum)."""
    sums = values[:STEP].cumsum(dtype=np.float64)
    for start in range(STEP, len(values), STEP):
        sums = np.concatenate([sums[-1:], values[start : start + STEP]]).cumsum(dtype=np.float64)
    return float(sums[-1])


def around(sample: np.ndarray, shares: list[float], limits: tuple[float, float]) -> tuple[float, float]:
    """Return two of the sample's values (or limits) between which the given shares very likely lie.

    sample: (clusters, width). Neighbouring elements of a tensor are similar, so the standard error of a share is taken from
    how much it varies between clusters.
    """
    ascending = np.sort(sample, axis=None)
    count = len(ascending)
    middle = ascending[min(int(shares[0] * count), count - 1)]
    if sample.shape[1] > 1:
        deviation = float((sample < middle).mean(1).std())
    else:  # there may be millions, so without a further array
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
