"""The Numba loops of methods that look at an element in all models: methods/sce.py and methods/consensus.py. As in
kernels.py: the result replaces row 0, and is the formula's to the bit."""

from __future__ import annotations

import numpy as np

from .bits import jit
from .kernels import CHUNK


@jit
def consensus(x, weights, lambdas, least):
    one, zero = x.dtype.type(1), x.dtype.type(0)
    together, votes = np.empty(CHUNK, x.dtype), np.empty(CHUNK, x.dtype)
    for begin in range(0, x.shape[1], CHUNK):
        end = min(begin + CHUNK, x.shape[1])
        merged, agree = together[: end - begin], votes[: end - begin]
        for k in range(x.shape[0]):
            row, weight = x[k, begin:end], weights[k]
            if k == 0:
                for i in range(row.size):
                    merged[i] = row[i] * weight
                    agree[i] = zero
            else:
                for i in range(row.size):
                    merged[i] += row[i] * weight
        for k in range(x.shape[0]):
            row, weight, factor = x[k, begin:end], weights[k], lambdas[k]
            for i in range(row.size):
                value = row[i] * weight
                agree[i] += one if abs(value) > abs(merged[i] - value) * factor else zero
        out = x[0, begin:end]
        for i in range(out.size):
            out[i] = merged[i] * (one if agree[i] >= least else zero)


@jit
def _variance(x, begin, found):
    """found (n,): what methods.sce.variance gives of the elements from `begin` on."""
    end = begin + found.size
    if x.shape[0] == 1:
        found[:] = x[0, begin:end] * x.dtype.type(0)
    for j in range(1, x.shape[0]):
        for k in range(j):
            a, b = x[j, begin:end], x[k, begin:end]
            if j == 1:
                for i in range(found.size):
                    found[i] = (a[i] - b[i]) * (a[i] - b[i])
            else:
                for i in range(found.size):
                    found[i] += (a[i] - b[i]) * (a[i] - b[i])


@jit
def variance(x):
    found = np.empty(CHUNK, x.dtype)
    for begin in range(0, x.shape[1], CHUNK):
        end = min(begin + CHUNK, x.shape[1])
        _variance(x, begin, found[: end - begin])
        x[0, begin:end] = found[: end - begin]


@jit
def sce(x, weights, threshold):
    one, zero = x.dtype.type(1), x.dtype.type(0)
    rounding = x.dtype.type((x.shape[0] + 1) * np.finfo(x.dtype).eps)
    work = np.empty((5, CHUNK), x.dtype)
    for begin in range(0, x.shape[1], CHUNK):
        end = min(begin + CHUNK, x.shape[1])
        total, size, divisor, merged, found = work[:, : end - begin]
        if threshold is not None:
            _variance(x, begin, found)
            limit = threshold[0]
            for i in range(found.size):
                found[i] = one if threshold.dtype.type(found[i]) >= limit else zero
            for k in range(x.shape[0]):
                row = x[k, begin:end]
                for i in range(row.size):
                    row[i] *= found[i]
        for k in range(x.shape[0]):
            row = x[k, begin:end]
            if k == 0:
                for i in range(row.size):
                    total[i] = row[i]
                    size[i] = abs(row[i])
            else:
                for i in range(row.size):
                    total[i] += row[i]
                    size[i] += abs(row[i])
        for i in range(total.size):
            size[i] = -one if total[i] < -rounding * size[i] else one  # the elected sign
        for k in range(x.shape[0]):
            row, weight = x[k, begin:end], weights[k]
            if k == 0:
                for i in range(row.size):
                    agrees = weight if row[i] * size[i] > zero else zero
                    divisor[i] = agrees
                    merged[i] = row[i] * agrees
            else:
                for i in range(row.size):
                    agrees = weight if row[i] * size[i] > zero else zero
                    divisor[i] += agrees
                    merged[i] += row[i] * agrees
        out = x[0, begin:end]
        for i in range(out.size):
            out[i] = (merged[i] + total[i] * zero) / (divisor[i] if divisor[i] > zero else one)
