"""The Numba loops over the softmax of each line of a tensor (methods/arcee_fusion.py, methods/gram.py): in float64, element
after element, so that no result depends on where blocks begin."""

from __future__ import annotations

import numpy as np
from numpy import float64

from .bits import jit

EPSILON = 1e-8  # added to every probability


@jit
def _line(i, across, width):
    return i % width if across else i // width


@jit
def add_exponentials(x, start, across, width, peaks, sums):
    """peaks, sums (lines,): the largest element so far, and the sum of exp(element - peak); with x, the elements from
    `start` on. Those that are NaN or Inf are passed over."""
    for i in range(x.size):
        value = float64(x[i])
        if abs(value) < np.inf:
            line = _line(start + i, across, width)
            if value > peaks[line]:
                sums[line] = sums[line] * np.exp(peaks[line] - value) + 1.0
                peaks[line] = value
            else:
                sums[line] += np.exp(value - peaks[line])


@jit
def add_divergence(x, base, start, across, width, peaks, sums, divergence):
    """divergence (lines,) += the terms p log(p / q) of x and base, the elements from `start` on. peaks, sums (2, lines): of
    x's lines and of base's."""
    for i in range(x.size):
        a, b = float64(x[i]), float64(base[i])
        if abs(a) < np.inf and abs(b) < np.inf:
            line = _line(start + i, across, width)
            p = np.exp(a - peaks[0, line]) / sums[0, line] + EPSILON
            q = np.exp(b - peaks[1, line]) / sums[1, line] + EPSILON
            divergence[line] += p * np.log(p / q)
