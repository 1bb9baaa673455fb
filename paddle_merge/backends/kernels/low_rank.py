"""Loops that add LoRA factors to a matrix, rescale its rows or columns (DoRA), or quantise and dequantise them."""

from __future__ import annotations

import numpy as np
from numpy import float32, float64

from .compiling import jit
from .folds import CHUNK

# --- adapters -------------------------------------------------------------------------------------------------------


@jit
def add_low_rank(x, start, left, right):
    """Add left (rows, r) @ right (r, columns) to x, the elements from `start` on of a matrix (rows, columns).

    Each element is summed over r in order, so it doesn't depend on where x begins and ends. Four terms at a time spare
    three quarters of the loads and stores of the sums.
    """
    rank, columns = right.shape
    sums = np.empty(CHUNK, x.dtype)
    done = 0
    while done < x.size:
        row = (start + done) // columns
        at = start + done - row * columns
        to = min(at + CHUNK, columns, at + x.size - done)
        for j in range(to - at):
            sums[j] = 0
        for k in range(0, rank - rank % 4, 4):
            a, b, c, d = left[row, k], left[row, k + 1], left[row, k + 2], left[row, k + 3]
            r, s, t, u = right[k, at:to], right[k + 1, at:to], right[k + 2, at:to], right[k + 3, at:to]
            for j in range(to - at):
                sums[j] = sums[j] + a * r[j] + b * s[j] + c * t[j] + d * u[j]
        for k in range(rank - rank % 4, rank):
            a, r = left[row, k], right[k, at:to]
            for j in range(to - at):
                sums[j] += a * r[j]
        for j in range(to - at):
            x[done + j] += sums[j]
        done += to - at


@jit
def add_squares(x, start, columns, axis, sums):
    """Add to sums (rows,) or (columns,), float64, the squares of x, the elements from `start` on, of each row or column."""
    for i in range(x.size):
        row = (start + i) // columns
        sums[row if axis == 0 else start + i - row * columns] += float64(x[i]) * float64(x[i])


@jit
def scale_rows(x, start, columns, axis, factors):
    """Multiply x, the elements from `start` on, by the factor of their row or column."""
    for i in range(x.size):
        row = (start + i) // columns
        x[i] *= factors[row if axis == 0 else start + i - row * columns]


@jit
def add_largest(x, start, columns, axis, largest):
    """Raise largest (rows,) or (columns,), float32, to the magnitudes of x, the elements from `start` on, of each row or
    column. NaN counts as nothing."""
    for i in range(x.size):
        row = (start + i) // columns
        k = row if axis == 0 else start + i - row * columns
        largest[k] = max(largest[k], abs(float32(x[i])))


@jit
def requantise(x, start, columns, axis, largest, scales, levels):
    """Replace x, the elements from `start` on, by the nearest of `levels` multiples, on each side of 0, of the scale of
    their row or column, in float32 arithmetic. Halves are rounded away from zero."""
    for i in range(x.size):
        row = (start + i) // columns
        k = row if axis == 0 else start + i - row * columns
        share = float32(0) if largest[k] == 0 else (float32(x[i]) / largest[k]) * float32(levels)
        size = min(abs(share), float32(levels))
        whole = np.floor(size)
        if size - whole >= float32(0.5):
            whole += float32(1)
        x[i] = (whole if share >= 0 else -whole) * scales[k]
