"""MAGPRUNE, DELLA's sampling: drop at random, small elements more readily than large ones (Deep et al. 2024, section 3.1).

PaddleNLP (`ByTensorRank`) ranks magnitudes over the whole tensor, takes epsilon for the full width of the range of keep
probabilities, and divides what is kept by its keep probability, as the paper does. mergekit (`ByRowRank`), like DELLA's own
code, ranks within each row, takes epsilon for half the width, and restores the tensor's L1 norm. paddlenlp.py and
mergekit.py say which goes with which method; dare.py says how the seed reaches a mask.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..backends.backend import Backend
from ..backends.budget import MemoryBudget
from ..backends.formula import formula
from ..backends.masks import Key, block_key, keep_limit
from ..records import record
from .dare import Hashed
from .shared.base import Tensor
from .shared.rank_masks import keep_nothing
from .shared.rows import SORTED, axes_of_rows
from .shared.small import SMALL, elements
from .shared.sparsify import Keep, Mask

BIN_SHIFT = 13  # of the float32 bits of |x|: 10 of 23 fraction bits are kept
BINS = 1 << (31 - BIN_SHIFT)

# --- ranks over the whole tensor


@formula(measure="measures.add_bins")
def magnitude_bins(xp: Any, x: Any) -> Any:
    """Return each element's bin, (n,) integers in [0, BINS), which are ordered as the magnitudes are. x: (n,)."""
    return xp.right_shift(xp.abs(x).astype(xp.float32).view(xp.uint32), BIN_SHIFT)


@formula(kernel="sparsifiers.magprune")
def magprune(xp: Any, x: Any, hashes: Any, limits: Any, scales: Any) -> Any:
    """Return x * scale where hash <= limit, both of the element's bin, else 0, (n,). limits, scales: (BINS,)."""
    bins = magnitude_bins(xp, x)
    return x * ((hashes <= xp.take(limits, bins)).astype(x.dtype) * xp.take(scales, bins))


@record(frozen=True)
class _Binned:
    """Keeps elements whose hash under the key is at most the limit of their bin. limits, scales: (BINS,)."""

    key: Key
    limits: Any
    scales: Any

    def apply(self, x: Any, start: int, backend: Backend) -> Any:
        return backend.apply_masked(magprune, x, block_key(self.key, start), self.limits, self.scales)

    def scaled(self, factor: float, backend: Backend) -> _Binned:
        return dataclasses.replace(self, scales=self.scales * factor)


@record(frozen=True)
class ByTensorRank(Keep):
    """Keep with probabilities from density - epsilon/2 for the smallest element of the tensor to density + epsilon/2.

    Ranks come from a histogram: magnitudes whose float32 values agree in their leading 11 significant bits share their mean
    rank. So equal elements get equal probabilities, whatever their order; the expected number kept is exact; and no
    probability is off by more than epsilon/2 times the fraction of elements that share it (2.4e-4 epsilon for Gaussian x).

    density: one number for all models, in (0, 1].
    """

    epsilon: float

    random = True
    has_probabilities = True

    @property
    def measures(self) -> bool:
        return True

    def memory(self, models: int, size: int, itemsize: int, budget: MemoryBudget) -> int:
        if size <= SMALL:
            return models * size * (8 + 4 + 2 * itemsize)
        counters = 4 if size < 2**32 else 8
        return BINS * models * (counters + 4 + itemsize)

    def masks(self, tensor: Tensor, backend: Backend, divide: bool) -> Sequence[Mask | None]:
        keys = list(map(tensor.mask_key, range(tensor.models)))
        if 0 < tensor.size <= SMALL:
            of_elements = self._of_elements(tensor, backend, divide)
            return [Hashed(key, limits, scales) for key, (limits, scales) in zip(keys, of_elements, strict=True)]
        return [
            _Binned(key, *self._tables(counts, self.density_of(model), backend, divide))
            for model, (key, counts) in enumerate(zip(keys, _histograms(tensor, backend), strict=True))
        ]

    def _tables(self, counts: Any, density: float, backend: Backend, divide: bool) -> tuple[Any, Any]:
        """Return (BINS,) limits and scales, filled in where there are elements. counts: (BINS,) of elements."""
        from ..backends.kernels.keep_tables import fill_tables  # planning does without

        limits, scales = np.empty(BINS, np.uint32), np.empty(BINS, backend.dtype)
        fill_tables(counts, density, self.epsilon, divide, limits, scales)
        return backend.mask_constant(limits), backend.mask_constant(scales)

    def _of_elements(self, tensor: Tensor, backend: Backend, divide: bool) -> Iterator[tuple[Any, Any]]:
        """Yield, for each model of a small tensor, what the tables have in each element's bin: (size,) limits and scales."""
        from ..backends.kernels.keep_tables import fill_elements, number_bins  # planning does without

        x = elements(tensor, backend)
        keys, limits, scales = np.empty(x.shape, np.uint64), np.empty(x.shape, np.uint32), np.empty_like(x)
        number_bins(x, BINS, keys)
        keys.sort(axis=1)
        densities = np.array([self.density_of(model) for model in range(tensor.models)], np.float64)
        fill_elements(keys, densities, self.epsilon, divide, limits, scales)
        for limit, scale in zip(limits, scales, strict=True):
            yield backend.mask_constant(limit), backend.mask_constant(scale)


def _histograms(tensor: Tensor, backend: Backend) -> list[np.ndarray]:
    """Return, for each model, how many elements each bin has, (BINS,)."""
    counter = np.uint32 if tensor.size < 2**32 else np.uint64
    counts = [np.zeros(BINS, counter) for _ in range(tensor.models)]
    for _, x in tensor.deltas():
        for row, count in zip(x, counts, strict=True):
            backend.add_bins(magnitude_bins, row, count)
    return counts


# --- ranks within each row


@formula(kernel="sparsifiers.pick")
def pick(xp: Any, x: Any, kept: Any, factor: Any) -> Any:
    """Return x * factor where kept, else 0, (n,); a NaN stays NaN. kept: (n,) of 0 and 1."""
    return x * (kept.astype(x.dtype) * factor)


def row_probabilities(length: int, density: float, epsilon: float) -> Any:
    """Return the keep probability of each rank in a row, (length,) float64, by ascending magnitude.

    That of rank r of n is density - epsilon + 2 epsilon r / (n - 1); of the only element of a row, density. (mergekit fails
    there.)
    """
    if length == 1:
        return np.full(1, density)
    return density - epsilon + np.arange(length) / (length - 1) * (2 * epsilon)


@record(frozen=True)
class _Bits:
    """Keeps elements whose bit is set. bits: (size / 8,) uint8 on the host, as np.packbits packs them."""

    bits: np.ndarray
    factor: Any

    def apply(self, x: Any, start: int, backend: Backend) -> Any:
        stop = start + x.shape[0]  # blocks begin at multiples of 8
        kept = np.unpackbits(self.bits[start // 8 : -(-stop // 8)], count=stop - start)
        return backend.apply(pick, x, backend.constant(kept), self.factor)

    def scaled(self, factor: float, backend: Backend) -> _Bits:
        return dataclasses.replace(self, factor=backend.scalar(factor))


@record(frozen=True)
class ByRowRank(Keep):
    """Keep with probabilities from density - epsilon for the smallest element of each row to density + epsilon.

    Rows are those of torch's matrix [out, in] (rows.axes_of_rows). Equal magnitudes rank by their indices (in mergekit by
    chance). Which elements are kept is decided once, row by row, and held as one bit for each element.

    epsilon: each model's.
    """

    epsilon: tuple[float, ...]

    random = True

    @property
    def measures(self) -> bool:
        return self.thins

    def memory(self, models: int, size: int, itemsize: int, budget: MemoryBudget) -> int:
        drawn = len(self.thinned(models))
        return drawn * (size // 8 + 1) + min(drawn * size * itemsize, budget.selecting) + min(size, SORTED) * (itemsize + 8)

    def row_memory(self, models: int, shape: tuple[int, ...], transposed: bool, itemsize: int) -> int:
        """Return what rows take that are longer than what is sorted together: one of each model, and its order; the
        limits of each model's by rank, and one by element."""
        length = axes_of_rows(shape, transposed)[1]
        return length * (len(self.thinned(models)) * (itemsize + 4) + itemsize + 8 + 8 + 4 + 8 + 1)

    def masks(self, tensor: Tensor, backend: Backend, divide: bool) -> Sequence[Mask | None]:
        from .shared.row_ranks import keep_by_rank  # planning does without

        axes = axes_of_rows(tensor.shape, tensor.transposed)
        draws = {}
        for model in self.thinned(tensor.models):
            limits = keep_limit(row_probabilities(axes[1], self.density_of(model), self.epsilon[model]))
            draws[model] = tensor.mask_key(model), limits
        bits, one = keep_by_rank(tensor, backend, axes, draws), backend.scalar(1.0)
        return [
            _Bits(bits[model], one)
            if model in bits
            else (None if self.density_of(model) > 0.0 else keep_nothing(tensor, backend))
            for model in range(tensor.models)
        ]
