"""Combine arrays as PEFT 0.21 does (peft/utils/merge_utils.py, LoraModel.add_weighted_adapter), in float32 and in its order.

The arrays are low-rank matrices, all A or all B of one layer; or changes, for the types that end in _svd. Pruning by
magnitude keeps exactly int(density * size) elements; among equal ones the first. Random pruning draws its masks from (seed,
tensor, adapter, element), where PEFT draws from torch's generator: equal in distribution.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from ...backends.masks import hash_block, keep_limit, mask_key
from ...records import record

FACTORWISE = ("linear", "magnitude_prune", "ties", "dare_linear", "dare_ties")  # combine A with A, and B with B
TRUNCATED = ("svd", "magnitude_prune_svd", "ties_svd", "dare_linear_svd", "dare_ties_svd")  # combine changes
TYPES = ("cat", *TRUNCATED, *FACTORWISE)
PRUNING = tuple(name for name in TYPES if name.startswith(("magnitude", "ties", "dare")))
ELECTING = tuple(name for name in TYPES if "ties" in name)
_HASHED = 1 << 20  # elements whose mask is drawn at a time


@record(frozen=True)
class Combination:
    """A type of PEFT's with its parameters. density: share of elements to keep, None for types that prune nothing."""

    type: str
    density: float | None = None
    majority_sign_method: str = "total"
    seed: int = 0

    def combine(
        self, arrays: Sequence[np.ndarray], weights: Sequence[float], adapters: Sequence[int], name: str
    ) -> np.ndarray:
        """Return arrays of one shape, float32, as one.

        adapters: whose they are, and name: of the tensor, for random masks.
        """
        kept = [self._pruned(array, adapter, name) for array, adapter in zip(arrays, adapters, strict=True)]
        factors = [np.float32(weight) for weight in weights]
        if self.type not in ELECTING:
            return _sum(array * factor for array, factor in zip(kept, factors, strict=True))
        votes = (np.sign(array) for array in kept) if self.majority_sign_method == "frequency" else iter(kept)
        majority = np.where(_sum(votes) >= 0, np.float32(1), np.float32(-1))
        agree = [np.sign(array) == majority for array in kept]
        total = _sum(array * factor * mask for array, factor, mask in zip(kept, factors, agree, strict=True))
        count = _sum(mask.astype(np.float32) for mask in agree)
        return np.asarray(total / np.maximum(count, np.float32(1)))

    def _pruned(self, array: np.ndarray, adapter: int, name: str) -> np.ndarray:
        """Return the array with the elements that pruning drops set to 0."""
        if self.density is None or self.density >= 1:
            return array
        if self.type.startswith("dare"):
            return _random(array, self.density, self.seed, adapter, name)
        return _largest(array, self.density)


def shared(scale: float) -> tuple[float, float]:
    """Return the weights of A and of B that share the scale, weight * scaling: its square root each, and its sign on A."""
    root = math.sqrt(abs(scale))
    return (root if scale >= 0 else -root), root


def _sum(arrays: Iterator[np.ndarray]) -> np.ndarray:
    """Return the sum, added up one after the other as torch does, in a new array."""
    total: np.ndarray = next(arrays).copy()
    for array in arrays:
        total += array
    return total


def _largest(array: np.ndarray, density: float) -> np.ndarray:
    """Keep the int(density * size) elements of the largest magnitude."""
    count, size = int(density * array.size), array.size
    magnitudes = np.abs(array).reshape(-1)
    if not count:
        return np.zeros_like(array)
    threshold = np.partition(magnitudes, size - count)[size - count]
    kept = magnitudes > threshold
    kept[np.flatnonzero(magnitudes == threshold)[: count - int(kept.sum())]] = True
    return np.asarray(array * kept.reshape(array.shape))


def _random(array: np.ndarray, density: float, seed: int, adapter: int, name: str) -> np.ndarray:
    """Keep each element with this probability, and divide what is kept by it."""
    key, limit, flat = mask_key(seed, adapter, name), keep_limit(density), array.reshape(-1)
    kept = np.empty_like(flat)
    for start in range(0, flat.size, _HASHED):
        block = flat[start : start + _HASHED]
        kept[start : start + _HASHED] = block * (hash_block(key, start, block.size) <= limit)
    return np.asarray(kept / np.float32(density)).reshape(array.shape)
