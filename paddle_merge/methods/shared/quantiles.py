"""Interpolate between two order statistics of |x|, and find quantiles of small tensors, whose elements are sorted.

In NumPy, not compiled: a first merge on a machine would wait longer for the compiler than small tensors take.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

_TOGETHER = 1 << 14  # elements of rows that are converted at a time
TEMPORARY = 72 * _TOGETHER  # bytes: what small_quantiles takes at most, for rows of up to that many elements


def interpolate(lower: Any, upper: Any, fraction: float) -> Any:
    """Return the number between two order statistics as NumPy 1.26 does, in their own dtype.

    lower, upper: NumPy scalars, or arrays of the same shape, which is that of the result. An infinite `upper` is the result.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # where the result is another
        difference = (upper - lower).astype(np.float64)
        if fraction < 0.5:
            between = lower.astype(np.float64) + difference * fraction
        else:
            between = upper.astype(np.float64) - difference * (1.0 - fraction)
        return np.where(upper < np.inf, between.astype(lower.dtype), upper)[()]


def small_quantiles(
    x: np.ndarray, low: int, fraction: float, compared: Any
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield, for some rows of x (rows, n) at a time, their quantiles and the sums around them: the threshold, total and kept
    of selection.Quantile, (rows,) each. n is not 0.

    low, fraction: a quantile lies that far behind the order statistic `low`. compared: the dtype of comparisons.
    """
    high = min(low + 1, x.shape[1] - 1)
    step = max(1, _TOGETHER // x.shape[1])
    for first in range(0, len(x), step):
        sizes = np.abs(x[first : first + step])
        ascending = np.sort(sizes, axis=1)  # NaN last
        with np.errstate(over="ignore"):
            order = np.fmin(ascending.astype(compared, copy=False), np.inf)
            thresholds = interpolate(order[:, low], order[:, high], fraction)
            kept = np.where((order >= thresholds[:, None]) & (order < np.inf), ascending, 0).cumsum(axis=1, dtype=np.float64)
            infinite = ~(sizes.astype(compared, copy=False) < np.inf)
            beyond = _folded(np.where(infinite, sizes, 0)) if infinite.any() else 0.0
            yield thresholds, _folded(sizes), beyond + kept[:, -1]


def _folded(x: np.ndarray) -> np.ndarray:
    """Return the sum of each row, float64, as loops add them up: each chunk's terms are folded, and the sums of chunks are
    added in order."""
    from ...backends.kernels.folds import CHUNK  # planning does without

    rows, size = x.shape
    width = CHUNK if size > CHUNK else 1 << (size - 1).bit_length()  # adding zeros changes nothing
    terms = np.zeros((rows, -(-size // width) * width))
    terms[:, :size] = x
    terms = terms.reshape(rows, -1, width)
    while width > 1:
        width //= 2
        terms = terms[..., :width] + terms[..., width:]
    return terms[..., 0].cumsum(axis=1)[:, -1]
