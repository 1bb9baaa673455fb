"""Loops that find a quantile of a tensor's magnitudes, and the sums around it (methods/shared/selection.py)."""

from __future__ import annotations

import numpy as np
from numpy import float64

from .compiling import jit
from .folds import CHUNK, HALF, fold_half


@jit
def interpolate(lower, upper, fraction):
    """Return the number between two order statistics as NumPy 1.26 does, float64: their difference is taken in their own
    dtype, to which the caller rounds the result, too."""
    if not abs(upper) < np.inf:
        return float64(upper)
    difference = float64(upper - lower)
    if fraction < 0.5:
        return float64(lower) + difference * fraction
    return float64(upper) - difference * (1.0 - fraction)


@jit
def add_quantiles(x, ascending, low, fraction, thresholds, sums):
    """Find a quantile of each row of x (models, n), and the sums around it, as methods.shared.selection.Quantile has them.

    ascending (models, n): each row's |x|, sorted as NumPy does, NaN last; not empty. low, fraction: the quantile lies that
    far behind the order statistic `low`. thresholds (models,): set, in the dtype in which magnitudes are compared. sums
    (models, 2) float64 += the sum of |x|, and that over |x| >= threshold.
    """
    kind = thresholds.dtype.type
    infinity, high = kind(np.inf), min(low + 1, x.shape[1] - 1)
    totals, infinite = np.empty(HALF, np.float64), np.empty(HALF, np.float64)
    row = np.empty(CHUNK, np.float64)
    for k in range(x.shape[0]):
        sizes = ascending[k]
        finite = sizes.size
        while finite and not kind(sizes[finite - 1]) < infinity:
            finite -= 1
        lower = kind(sizes[low]) if low < finite else infinity
        upper = kind(sizes[high]) if high < finite else infinity
        threshold = kind(interpolate(lower, upper, fraction))
        thresholds[k] = threshold
        for begin in range(0, x.shape[1], CHUNK):  # folded as measures.count_between does
            chunk = x[k, begin : begin + CHUNK]
            for i in range(chunk.size):
                row[i] = float64(abs(chunk[i]))
            row[chunk.size :] = 0.0
            for i in range(HALF):
                totals[i] = row[i] + row[i + HALF]
            sums[k, 0] += fold_half(totals)
            if finite < sizes.size:
                for i in range(HALF):
                    a, b = row[i], row[i + HALF]
                    infinite[i] = (0.0 if kind(a) < infinity else a) + (0.0 if kind(b) < infinity else b)
                sums[k, 1] += fold_half(infinite)
        first = finite
        while first and kind(sizes[first - 1]) >= threshold:
            first -= 1
        if first < finite:
            kept = float64(sizes[first])
            for i in range(first + 1, finite):
                kept += float64(sizes[i])
            sums[k, 1] += kept
