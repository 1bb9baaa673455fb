"""Loops that rank the elements of a row by magnitude and keep some of them at random by rank."""

from __future__ import annotations

import numpy as np
from numpy import uint8, uint32, uint64

from .compiling import jit
from .folds import bits_of, hash_of


@jit
def gather(x, start, inner, first, panel, row):
    """Write |x| of the columns first.. of a matrix (rows, inner) into panel (rows, width), whose first row is `row`.

    x: some of the matrix' elements, from `start` on; what it doesn't hold is left as it is.
    """
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
def order_rows(rows, digit, order):
    """Write into order (rows, n) uint32 the indices of each row's float32 magnitudes (rows, n) in ascending order, equals by
    index.

    A radix sort, from the lowest digits of `digit` bits to the highest, without those in which all elements agree, as
    differences of 16-bit floats do in the lowest. For rows of hundreds of elements and more it takes half of the time that
    sorting by comparisons takes, or less.
    """
    n, passes, size = rows.shape[1], -(-31 // digit), 1 << digit
    mask = uint32(size - 1)
    counts = np.empty((passes, size), np.uint32)
    keys, next_keys = np.empty(n, np.uint32), np.empty(n, np.uint32)
    indices, next_indices = np.empty(n, np.uint32), np.empty(n, np.uint32)
    for k in range(rows.shape[0]):
        counts[:] = 0
        for j in range(n):
            keys[j], indices[j] = bits_of(rows[k, j]), j
            for p in range(passes):
                counts[p, (keys[j] >> uint32(p * digit)) & mask] += uint32(1)
        for p in range(passes):
            shift, place = uint32(p * digit), counts[p]
            if place[(keys[0] >> shift) & mask] == n:
                continue
            end = uint32(0)
            for d in range(size):
                place[d], end = end, end + place[d]
            for j in range(n):
                d = (keys[j] >> shift) & mask
                next_keys[place[d]], next_indices[place[d]] = keys[j], indices[j]
                place[d] += uint32(1)
            keys, next_keys = next_keys, keys
            indices, next_indices = next_indices, indices
        order[k] = indices


@jit
def keep_ranked(order, elements, step, k0, k1, limits, kept):
    """Set the bit in `kept` of every element whose hash is at most the limit of its rank.

    order: (rows, n) uint32, the indices within a row by ascending rank. elements: (rows,), each row's first
    element. step: from one element of a row to the next.
    """
    n = order.shape[1]
    highest, is_kept = np.empty(n, np.uint32), np.empty(n, np.uint8)
    for k in range(order.shape[0]):
        ranked, first = order[k], elements[k]
        for rank in range(n):
            highest[ranked[rank]] = limits[rank]
        for j in range(n):  # in order, without a branch: by rank this takes three times as long
            element = uint64(first + np.int64(j) * step)
            low, high = uint32(element & uint64(0xFFFFFFFF)), uint32(element >> uint64(32))
            is_kept[j] = hash_of(low, k0, uint32(k1 ^ high)) <= highest[j]
        for j in range(n):
            element = first + j * step
            kept[element >> 3] |= uint8(is_kept[j] << uint8(7 - (element & 7)))
