"""The Numba loops over the lines of tensors (methods/gram.py): their dot products, and sums with weights of their own.

As in kernels.py no result depends on the size of a block: sums are of pieces that end where a line does, or at a multiple of
CHUNK, as every block begins at one.
"""

from __future__ import annotations

import numpy as np
from numpy import float64

from .bits import jit
from .kernels import CHUNK


@jit
def linear_lines(x, weights, start, across, width):
    done, size = 0, x.shape[1]
    while done < size:
        line = (start + done) // width
        at = start + done - line * width
        end = min(done + width - at, size)
        merged = x[0, done:end]
        for k in range(x.shape[0]):
            row = x[k, done:end]
            if across:
                factors = weights[k, at : at + row.size]
                if k == 0:
                    for i in range(row.size):
                        merged[i] *= factors[i]
                else:
                    for i in range(row.size):
                        merged[i] += row[i] * factors[i]
            else:
                factor = weights[k, line]
                if k == 0:
                    for i in range(row.size):
                        merged[i] *= factor
                else:
                    for i in range(row.size):
                        merged[i] += row[i] * factor
        done = end


@jit
def _dot(a, b, terms):
    """In float64: products, halves added onto each other. terms: room for as many."""
    for i in range(a.size):
        terms[i] = float64(a[i]) * float64(b[i])
    width = a.size
    while width > 1:
        half = (width + 1) // 2
        low, high = terms[:half], terms[half:width]
        for i in range(high.size):
            low[i] += high[i]
        width = half
    return terms[0]


@jit
def add_line_grams(x, start, across, width, grams):
    """grams (pairs, lines) += the dot products of all pairs of rows of x, (0 0, 1 0, 1 1, 2 0 ...), in each line."""
    done, size = 0, x.shape[1]
    terms = np.empty(CHUNK, np.float64)
    while done < size:
        line = (start + done) // width
        at = start + done - line * width
        end = min(done + width - at, done + CHUNK - (start + done) % CHUNK, size)
        pair = 0
        for j in range(x.shape[0]):
            for k in range(j + 1):
                a, b = x[j, done:end], x[k, done:end]
                if across:
                    sums = grams[pair, at : at + a.size]
                    for i in range(a.size):
                        sums[i] += float64(a[i]) * float64(b[i])
                else:
                    grams[pair, line] += _dot(a, b, terms)
                pair += 1
        done = end
