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

    A radix sort, from the lowest digits of `digit` bits to the highest. Bits in which all elements of a row agree are left
    out, as differences of 16-bit floats do in the lowest. Both halves of a row are counted and moved at the same time, each
    to places of its own, so that one doesn't wait for the other where an element has the same digit as the one before. For
    rows of hundreds of elements and more it takes a third of the time that sorting by comparisons takes, or less.
    """
    n, size = rows.shape[1], 1 << digit
    half, mask = n // 2, uint64(size - 1)
    keys, sorted_keys = np.empty(n, np.uint64), np.empty(n, np.uint64)  # magnitude and index
    places, other_places = np.empty(size, np.uint32), np.empty(size, np.uint32)  # of each digit, for each half
    for k in range(rows.shape[0]):
        row = rows[k]
        some, every = uint32(0), uint32(0xFFFFFFFF)
        for j in range(n):
            bits = bits_of(row[j])
            some = uint32(some | bits)
            every = uint32(every & bits)
            keys[j] = (uint64(bits) << uint64(32)) | uint64(j)
        differing, shift = uint32(some ^ every), uint64(32)
        while differing:
            while not differing & uint32(1):
                differing = uint32(differing >> uint32(1))
                shift = uint64(shift + uint64(1))
            for d in range(size):
                places[d] = 0
                other_places[d] = 0
            for j in range(half):
                places[(keys[j] >> shift) & mask] += uint32(1)
                other_places[(keys[half + j] >> shift) & mask] += uint32(1)
            for j in range(2 * half, n):
                other_places[(keys[j] >> shift) & mask] += uint32(1)
            place = uint32(0)
            for d in range(size):
                other = uint32(place + places[d])
                places[d] = place
                place = uint32(other + other_places[d])
                other_places[d] = other
            for j in range(half):
                key, other_key = keys[j], keys[half + j]
                d, e = (key >> shift) & mask, (other_key >> shift) & mask
                place, other = places[d], other_places[e]
                sorted_keys[place] = key
                sorted_keys[other] = other_key
                places[d] = uint32(place + uint32(1))
                other_places[e] = uint32(other + uint32(1))
            for j in range(2 * half, n):
                sorted_keys[other_places[(keys[j] >> shift) & mask]] = keys[j]
            keys, sorted_keys = sorted_keys, keys
            differing = uint32(differing >> uint32(digit))
            shift = uint64(shift + uint64(digit))
        ordered = order[k]
        for j in range(n):
            ordered[j] = uint32(keys[j])


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
        high = uint32(uint64(first) >> uint64(32))
        if (first ^ (first + n * step)) >> 32 == 0:  # so nearly always
            for j in range(n):  # in order, without a branch: by rank this takes three times as long
                low = uint32(uint32(first) + uint32(uint32(j) * uint32(step)))
                is_kept[j] = hash_of(low, k0, uint32(k1 ^ high)) <= highest[j]
        else:
            for j in range(n):
                element = uint64(first + j * step)
                high = uint32(element >> uint64(32))
                is_kept[j] = hash_of(uint32(element), k0, uint32(k1 ^ high)) <= highest[j]
        j = 0
        if step == 1:  # a byte at a time
            while j < n and (first + j) & 7:
                element = first + j
                kept[element >> 3] |= uint8(is_kept[j] << uint8(7 - (element & 7)))
                j += 1
            while j + 8 <= n:
                byte = uint8(0)
                for i in range(8):
                    byte = uint8(byte << uint8(1)) | is_kept[j + i]
                kept[(first + j) >> 3] |= byte
                j += 8
        while j < n:
            element = first + j * step
            kept[element >> 3] |= uint8(is_kept[j] << uint8(7 - (element & 7)))
            j += 1
