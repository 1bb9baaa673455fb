"""Loops of the sparsifiers' formulas (methods/): each changes one block of a task vector in place."""

from __future__ import annotations

import numpy as np
from numpy import uint32

from .compiling import jit
from .folds import CHUNK, bin_shift, bits_of, hash_of

# --- sparsifiers: in place -------------------------------------------------------------------------------------------


@jit
def trim(x, threshold, factor):
    limit, zero = threshold[0], x.dtype.type(0)
    for i in range(x.size):
        x[i] *= factor if threshold.dtype.type(abs(x[i])) >= limit else zero


@jit
def dare(x, k0, k1, limits, scales):
    limit, scale, zero = limits[0], scales[0], x.dtype.type(0)
    if limits.size == x.size:
        for i in range(x.size):
            x[i] *= scales[i] if hash_of(i, k0, k1) <= limits[i] else zero
    else:
        for i in range(x.size):
            x[i] *= scale if hash_of(i, k0, k1) <= limit else zero


@jit
def magprune(x, k0, k1, limits, scales):
    shift, zero = bin_shift(limits.size), x.dtype.type(0)
    limit, scale = np.empty(CHUNK, np.uint32), np.empty(CHUNK, x.dtype)
    for begin in range(0, x.size, CHUNK):
        chunk, first = x[begin : begin + CHUNK], uint32(k0 + uint32(begin))
        for i in range(chunk.size):
            place = uint32(bits_of(abs(chunk[i])) >> shift)
            limit[i] = limits[place]
            scale[i] = scales[place]
        # A loop of its own, as the compiler can't vectorise the one above. So it is with an index beyond 32 bits, too.
        for i in range(chunk.size):
            chunk[i] *= scale[i] if hash_of(i, first, k1) <= limit[i] else zero


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
