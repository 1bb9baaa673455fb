"""The Numba loops of mergekit's sparsifiers (methods/magnitude.py, della.py, l1.py, and line_ranks.py). As in kernels.py no
result depends on the size of a block."""

from __future__ import annotations

import numpy as np
from numpy import float64, uint8, uint32, uint64

from .bits import jit
from .kernels import CHUNK, bits_of, fold, hash_of


@jit
def between(x, low, high, factor):
    least, most, zero = low[0], high[0], x.dtype.type(0)
    for i in range(x.size):
        size = low.dtype.type(abs(x[i]))
        x[i] *= factor if (size >= least) & (size <= most) else zero


@jit
def pick(x, kept, factor):
    for i in range(x.size):
        x[i] *= x.dtype.type(kept[i]) * factor


@jit
def add_magnitudes(x, unit, sums):
    terms = np.empty(CHUNK, np.float64)
    for begin in range(0, x.size, CHUNK):
        chunk = x[begin : begin + CHUNK]
        for i in range(chunk.size):
            terms[i] = float64(abs(chunk[i])) * unit
        terms[chunk.size :] = 0.0
        sums[0] += fold(terms)


@jit
def count_equal(x, values):
    """How many |x| equal values (1,); NaN counts as infinite."""
    value, found = values[0], 0
    for begin in range(0, x.size, CHUNK):
        chunk = x[begin : begin + CHUNK]
        equal = uint32(0)
        if value == np.inf:
            for i in range(chunk.size):
                equal = uint32(equal + uint32(not abs(chunk[i]) < value))
        else:
            for i in range(chunk.size):
                equal = uint32(equal + uint32(values.dtype.type(abs(chunk[i])) == value))
        found += equal
    return found


@jit
def gather(x, start, inner, first, panel, row):
    """The columns first.. of a matrix (rows, inner), |x| of those elements from `start` on that x holds, into panel (rows,
    width), which begins at `row`."""
    width, done = panel.shape[1], 0
    while done < x.size:
        r = (start + done) // inner
        begin = r * inner - start  # of the row, in x
        low, high = max(done, begin + first), min(x.size, begin + first + width)
        line = panel[r - row]
        for i in range(low, high):
            line[i - begin - first] = abs(x[i])
        done = min(x.size, begin + inner)


@jit
def rank_keys(lines, keys):
    """Float32 magnitudes (lines, n) -> keys that order as they do, and among equals as their indices, the low 32 bits."""
    for k in range(lines.shape[0]):
        line, key = lines[k], keys[k]
        for j in range(line.size):
            key[j] = (uint64(bits_of(line[j])) << uint64(32)) | uint64(j)


@jit
def keep_ranked(order, elements, step, k0, k1, limits, kept):
    """Set the bit in `kept` of every element whose hash is at most the limit of its rank.

    order (lines, n): the low 32 bits are the indices within a line by ascending rank. elements (lines,): each line's first
    element; step: from one of its elements to the next.
    """
    n = order.shape[1]
    highest, is_kept = np.empty(n, np.uint32), np.empty(n, np.uint8)
    for k in range(order.shape[0]):
        ranked, first = order[k], elements[k]
        for rank in range(n):
            highest[ranked[rank] & uint64(0xFFFFFFFF)] = limits[rank]
        for j in range(n):  # in order, without a branch: by rank this takes three times as long
            element = uint64(first + np.int64(j) * step)
            low, high = uint32(element & uint64(0xFFFFFFFF)), uint32(element >> uint64(32))
            is_kept[j] = hash_of(low, k0, uint32(k1 ^ high)) <= highest[j]
        for j in range(n):
            element = first + j * step
            kept[element >> 3] |= uint8(is_kept[j] << uint8(7 - (element & 7)))
