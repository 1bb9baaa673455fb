"""MAGPRUNE, DELLA's sampling: drop at random, small elements more readily than large ones (Deep et al. 2024, section 3.1).

The element of rank r by magnitude (0 = largest, of n) is dropped with probability (1 - density) - epsilon/2 + epsilon r/n,
and what is kept is divided by its own keep probability. As in PaddleNLP, ranks are over the whole tensor and epsilon is
the full width of the range (DELLA's code and mergekit: ranks per row, epsilon half the width).

Ranks come from a histogram: magnitudes whose float32 values agree in their leading 11 significant bits share their mean
rank. So equal elements get equal probabilities, whatever their order; the expected number kept is exact; and no
probability is off by more than epsilon/2 times the fraction of elements that share it (2.4e-4 epsilon for Gaussian deltas).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backends.backend import Backend
from ..backends.budget import MemoryBudget
from ..backends.formula import formula
from ..backends.masks import FINEST, block_key, keep_limit, mask_key
from .dare import density_problems
from .shared.base import Tensor

BIN_SHIFT = 13  # of the float32 bits of |x|: 10 of 23 fraction bits are kept
BINS = 1 << (31 - BIN_SHIFT)
_ROW = 512  # bins, a power of two: what is looked at together for whether it is used


@formula(measure="measures.add_bins")
def magnitude_bins(xp: Any, x: Any) -> Any:
    """x (n,) -> (n,) in [0, BINS): the bins, which order as the magnitudes do."""
    return xp.right_shift(xp.abs(x).astype(xp.float32).view(xp.uint32), BIN_SHIFT)


@formula(kernel="sparsifiers.magprune")
def magprune(xp: Any, x: Any, hashes: Any, limits: Any, scales: Any) -> Any:
    """x (n,), hashes (n,), limits and scales (BINS,) -> (n,): x * scale where hash <= limit of its bin, else 0."""
    bins = magnitude_bins(xp, x)
    return x * ((hashes <= xp.take(limits, bins)).astype(x.dtype) * xp.take(scales, bins))


def keep_probabilities(counts: Any, density: float, epsilon: float) -> Any:
    """counts (bins,) of elements, by ascending magnitude -> (bins,) float64: the keep probability in each bin."""
    n = counts.sum()
    larger = n - np.cumsum(counts, dtype=np.int64)
    mean_rank = larger + (counts - 1.0) / 2.0
    keep = 1.0 - ((1.0 - density) - epsilon / 2.0 + epsilon / n * mean_rank)
    return np.clip(keep, FINEST, 1.0)  # epsilon at its largest reaches 0, within rounding errors


@dataclass(frozen=True)
class Magprune:
    """density: the mean probability of keeping an element. epsilon: keep probabilities span density -/+ epsilon/2.
    rescale: divide what is kept by its keep probability.
    """

    density: float = 0.7
    epsilon: float = 0.14
    rescale: bool = True

    measures = True
    random = True

    def problems(self) -> list[str]:
        found = density_problems(self.density, FINEST)
        if found:
            return found
        widest = 2.0 * min(self.density, 1.0 - self.density)
        if not 0.0 <= self.epsilon <= widest + 1e-12:
            found.append(
                f"--epsilon {self.epsilon:g} with --reserve_p {self.density:g} would need probabilities outside 0 to 1: keep"
                f" probabilities span reserve_p -/+ epsilon/2, so epsilon may be at most {widest:g}"
            )
        return found

    def memory(self, models: int, size: int, itemsize: int, budget: MemoryBudget) -> int:
        counters = 4 if size < 2**32 else 8
        return BINS * (models * (counters + 4 + itemsize) + 5 * 8)  # and what the tables of one are computed from

    def prepare(self, tensor: Tensor, backend: Backend) -> Sequence[Any]:
        counter = np.uint32 if tensor.size < 2**32 else np.uint64
        counts = [np.zeros(BINS, counter) for _ in range(tensor.models)]
        for _, x in tensor.deltas():
            for row, count in zip(x, counts, strict=True):
                backend.add_bins(magnitude_bins, row, count)
        keys = [mask_key(tensor.seed, model, tensor.name) for model in range(tensor.models)]
        return [(key, *self._tables(count, backend)) for key, count in zip(keys, counts, strict=True)]

    def _tables(self, counts: Any, backend: Backend) -> tuple[Any, Any]:
        """(BINS,) limits and scales, filled in where there are counts."""
        counts = counts.reshape(-1, _ROW)
        rows = np.flatnonzero(counts.max(1))  # the bins of a few octaves, usually
        keep = keep_probabilities(counts[rows].reshape(-1), self.density, self.epsilon).reshape(-1, _ROW)
        limits, scales = np.empty((BINS // _ROW, _ROW), np.uint32), np.empty((BINS // _ROW, _ROW), backend.dtype)
        limits[rows] = keep_limit(keep)
        scales[rows] = 1.0 / keep if self.rescale else 1.0
        return backend.mask_constant(limits.reshape(-1)), backend.mask_constant(scales.reshape(-1))

    def apply(self, x: Any, start: int, state: Any, backend: Backend) -> Any:
        key, limits, scales = state
        return backend.apply_masked(magprune, x, block_key(key, start), limits, scales)
