"""The Numba loops of methods that ask whether an element changed: methods/nearswap.py, methods/ram.py."""

from __future__ import annotations

import numpy as np

from .bits import jit
from .kernels import CHUNK


@jit
def nearswap(x, t, limit, gain):
    row, zero, one = x[0], x.dtype.type(0), x.dtype.type(1)
    for i in range(row.size):
        near = one if abs(row[i]) < limit else zero
        row[i] = row[i] * (near * gain) + np.sign(row[i]) * ((one - near) * t)


@jit
def ram(x, epsilon, factors):
    one, zero, half = x.dtype.type(1), x.dtype.type(0), x.dtype.type(0.5)
    counts, sums, lone = np.empty(CHUNK, x.dtype), np.empty(CHUNK, x.dtype), np.empty(CHUNK, x.dtype)
    for begin in range(0, x.shape[1], CHUNK):
        end = min(begin + CHUNK, x.shape[1])
        n, s, m = counts[: end - begin], sums[: end - begin], lone[: end - begin]
        for i in range(n.size):
            n[i] = zero
            s[i] = zero
            m[i] = zero
        for k in range(x.shape[0]):
            row, factor = x[k, begin:end], factors[k]
            for i in range(row.size):
                active = one if abs(row[i]) > epsilon else zero
                changed = row[i] * active
                n[i] += active
                s[i] += changed
                m[i] += changed * factor
        out = x[0, begin:end]
        for i in range(n.size):
            alone = one if n[i] < one + half else zero
            mean = s[i] / (n[i] + (one if n[i] < half else zero))
            out[i] = mean * (one - alone) + m[i] * alone


@jit
def count_active(x, epsilon, counts):
    """counts (models, 2) += elements of each row beyond epsilon, where no other row's is, and where some other's is."""
    together = np.empty(CHUNK, np.uint16)
    for begin in range(0, x.shape[1], CHUNK):
        end = min(begin + CHUNK, x.shape[1])
        n = together[: end - begin]
        for i in range(n.size):
            n[i] = 0
        for k in range(x.shape[0]):
            row = x[k, begin:end]
            for i in range(row.size):
                n[i] += np.uint16(abs(row[i]) > epsilon)
        for k in range(x.shape[0]):
            row = x[k, begin:end]
            alone, shared = 0, 0
            for i in range(row.size):
                active = abs(row[i]) > epsilon
                alone += active & (n[i] == 1)
                shared += active & (n[i] > 1)
            counts[k, 0] += alone
            counts[k, 1] += shared
