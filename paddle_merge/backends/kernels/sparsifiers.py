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
    shift = bin_shift(limits.size)
    # One simple loop per step: together, or with an index that may be beyond 32 bits, the compiler would not vectorise them.
    bins, limit, scale = np.empty(CHUNK, np.uint32), np.empty(CHUNK, np.uint32), np.empty(CHUNK, x.dtype)
    zero = x.dtype.type(0)
    for begin in range(0, x.size, CHUNK):
        chunk, first = x[begin : begin + CHUNK], uint32(k0 + uint32(begin))
        for i in range(chunk.size):
            bins[i] = bits_of(abs(chunk[i])) >> shift
        for i in range(chunk.size):
            limit[i] = limits[bins[i]]
        for i in range(chunk.size):
            scale[i] = scales[bins[i]]
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
