"""Helpers that other loops share: hashing, bits of magnitudes, and sums in a fixed order."""

from __future__ import annotations

import numpy as np
from numpy import uint32

from .compiling import jit

CHUNK = 1024  # elements; every block starts at a multiple of it
HALF = CHUNK // 2  # a power of 8


@jit
def bits_of(value):
    return np.float32(value).view(np.uint32)


@jit
def hash_of(i, k0, k1):
    h = uint32(uint32(i) + k0)
    h = uint32(uint32(h ^ uint32(h >> uint32(16))) * uint32(0x7FEB352D))
    h = uint32(uint32(h ^ uint32(h >> uint32(15))) * uint32(0x846CA68B))
    h = uint32(uint32(h ^ uint32(h >> uint32(16))) ^ k1)
    h = uint32(uint32(h ^ uint32(h >> uint32(16))) * uint32(0x21F0AAAD))
    h = uint32(uint32(h ^ uint32(h >> uint32(15))) * uint32(0xD35A2D97))
    return uint32(h ^ uint32(h >> uint32(15)))


@jit
def bin_shift(bins):
    """Return by how many bits the 31 bits of a float32 magnitude are shifted to index a table of `bins`, a power of two."""
    shift = uint32(31)
    while bins > 1:
        bins //= 2
        shift = uint32(shift - uint32(1))
    return shift


@jit
def fold_half(terms):
    """Return the sum of HALF float64 terms: halves are added onto each other. Overwrites them.

    A chunk's terms are folded alike: who makes them adds its second half onto the first.
    """
    eighth = HALF // 8
    while eighth:  # three halvings in one loop, which reads and writes less
        for i in range(eighth):
            even = (terms[i] + terms[i + 4 * eighth]) + (terms[i + 2 * eighth] + terms[i + 6 * eighth])
            odd = (terms[i + eighth] + terms[i + 5 * eighth]) + (terms[i + 3 * eighth] + terms[i + 7 * eighth])
            terms[i] = even + odd
        eighth //= 8
    return terms[0]
