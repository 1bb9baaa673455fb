"""Loops that make tables of MAGPRUNE (methods/della.py): how likely elements are kept, by the ranks of their magnitudes."""

from __future__ import annotations

import numpy as np
from numpy import float64, uint32, uint64

from .compiling import jit
from .folds import bin_shift, bits_of

FINEST = 2.0**-32  # backends.masks.FINEST


@jit
def keep_probability(count, larger, size, density, epsilon):
    """Return the probability of keeping `count` elements of one bin, of `size` in all, `larger` of which are in higher bins.

    The element of rank r by magnitude (0 is the largest, of n) is dropped with probability (1 - density) - epsilon/2 +
    epsilon r/n; elements of one bin share their mean rank. At least FINEST: epsilon at its largest reaches 0, within
    rounding.
    """
    mean_rank = float64(larger) + (float64(count) - 1.0) / 2.0
    keep = 1.0 - ((1.0 - density) - epsilon / 2.0 + epsilon / float64(size) * mean_rank)
    return FINEST if keep < FINEST else 1.0 if keep > 1.0 else keep


@jit
def _limit(keep):
    """Return backends.masks.keep_limit of one probability."""
    count = np.rint(keep * 2.0**32)
    return uint32((1.0 if count < 1.0 else 2.0**32 if count > 2.0**32 else count) - 1.0)


@jit
def fill_tables(counts, density, epsilon, divide, limits, scales):
    """Fill in limits (bins,) uint32 and scales (bins,), in compute dtype, where there are elements.

    counts (bins,): how many elements each bin has, by ascending magnitude. divide: whether the scale is 1 / probability, or
    1.
    """
    size = 0
    for i in range(counts.size):
        size += int(counts[i])
    larger = size
    for i in range(counts.size):
        count = int(counts[i])
        if count:
            larger -= count
            keep = keep_probability(count, larger, size, density, epsilon)
            limits[i] = _limit(keep)
            scales[i] = 1.0 / keep if divide else 1.0


@jit
def number_bins(x, bins, keys):
    """Set keys (models, n) uint64 to numbers that sort the elements of each row of x (models, n): by their bins, then by
    their indices. bins: how many there are, a power of two."""
    shift = bin_shift(bins)
    for k in range(x.shape[0]):
        for i in range(x.shape[1]):
            keys[k, i] = uint64(bits_of(abs(x[k, i])) >> shift) << uint64(32) | uint64(i)


@jit
def fill_elements(keys, densities, epsilon, divide, limits, scales):
    """Fill in limits (models, n) uint32 and scales (models, n), in compute dtype: of each element, what fill_tables gives
    its bin. keys: those of number_bins, each row sorted. densities (models,): of each model."""
    size = keys.shape[1]
    for k in range(keys.shape[0]):
        first = 0
        while first < size:
            stop = first + 1
            while stop < size and keys[k, stop] >> uint64(32) == keys[k, first] >> uint64(32):
                stop += 1
            keep = keep_probability(stop - first, size - stop, size, densities[k], epsilon)
            limit, scale = _limit(keep), 1.0 / keep if divide else 1.0
            for i in range(first, stop):
                element = uint32(keys[k, i])
                limits[k, element] = limit
                scales[k, element] = scale
            first = stop
