"""Loops of the mergers' formulas (methods/): each merges the rows of one block; the result replaces the first row."""

from __future__ import annotations

import numpy as np

from .compiling import jit
from .folds import CHUNK

VOTES = CHUNK // 2  # elements that are voted on at a time: all rows that it takes stay in the first-level cache

# --- adding the base back -------------------------------------------------------------------------------------------


@jit
def add_scaled(base, x, scale):
    for i in range(x.size):
        x[i] = base[i] + scale * x[i]


# --- mergers: the result replaces row 0 ------------------------------------------------------------------------------


@jit
def linear(x, weights):
    for begin in range(0, x.shape[1], CHUNK):
        end = min(begin + CHUNK, x.shape[1])
        merged = x[0, begin:end]
        for i in range(merged.size):
            merged[i] *= weights[0]
        for k in range(1, x.shape[0]):
            row, weight = x[k, begin:end], weights[k]
            for i in range(merged.size):
                merged[i] += row[i] * weight


@jit
def ties(x, weights, by_count, zero_sign, normalize):
    """by_count: None is False, of which Numba compiles only what is needed."""
    one, zero, cancelled = x.dtype.type(1), x.dtype.type(0), x.dtype.type(zero_sign)
    rounding = x.dtype.type((x.shape[0] + 1) * (2.0**-23 if x.itemsize == 4 else 2.0**-52))  # np.finfo takes long to compile
    total, size = np.empty(VOTES, x.dtype), np.empty(VOTES, x.dtype)
    divisor, merged = np.empty(VOTES, x.dtype), np.empty(VOTES, x.dtype)
    votes = total
    if by_count is not None and by_count:
        votes = np.empty(VOTES, x.dtype)
    for begin in range(0, x.shape[1], VOTES):
        end = begin + VOTES if begin + VOTES < x.shape[1] else x.shape[1]
        out, first = x[0, begin:end], weights[0]
        for i in range(out.size):
            value = out[i] * first
            total[i] = zero + value  # a sum is never -0
            size[i] = abs(value)
        for k in range(1, x.shape[0]):
            row, weight = x[k, begin:end], weights[k]
            for i in range(row.size):
                value = row[i] * weight
                total[i] += value
                size[i] += abs(value)
        if by_count is not None and by_count:
            for i in range(out.size):
                votes[i] = zero
                size[i] = zero
            for k in range(x.shape[0]):
                row, weight = x[k, begin:end], weights[k]
                for i in range(row.size):
                    value = row[i] * weight
                    votes[i] += x.dtype.type(value > zero) - x.dtype.type(value < zero)
        for i in range(out.size):
            sign = (one if votes[i] > zero else -one) if abs(votes[i]) > rounding * size[i] else cancelled
            size[i] = sign  # in the place of what is no longer needed
            along = out[i] * first * sign  # positive where the model agrees
            merged[i] = zero + max(along, zero)
            divisor[i] = first if along > zero else zero
        for k in range(1, x.shape[0]):
            row, weight = x[k, begin:end], weights[k]
            for i in range(row.size):
                along = row[i] * weight * size[i]
                merged[i] += max(along, zero)
                divisor[i] += weight if along > zero else zero
        for i in range(out.size):
            by = divisor[i] if (divisor[i] != zero) & normalize else one
            out[i] = merged[i] / by * size[i] + zero * total[i]  # 0 * total keeps NaN and Inf visible


@jit
def nearswap(x, t, limit, gain):
    row, zero, one = x[0], x.dtype.type(0), x.dtype.type(1)
    for i in range(row.size):
        near = one if abs(row[i]) < limit else zero
        row[i] = row[i] * (near * gain) + np.sign(row[i]) * ((one - near) * t)


@jit
def _spread(divergence, start, across, width, out):
    """Write to out (n,) the divergence of the row that each element belongs to, for the elements from `start` on."""
    done = 0
    while done < out.size:
        line, place = (start + done) // width, (start + done) % width
        count = min(width - place, out.size - done)
        if across:
            for i in range(count):
                out[done + i] = divergence[place + i]
        else:
            value = divergence[line]
            for i in range(count):
                out[done + i] = value
        done += count


@jit
def block_importance(x, start, divergence, across, width):
    factors = np.empty(CHUNK, divergence.dtype)
    for begin in range(0, x.shape[1], CHUNK):
        base, model = x[0, begin : begin + CHUNK], x[1, begin : begin + CHUNK]
        _spread(divergence, start + begin, across, width, factors[: base.size])
        for i in range(base.size):
            base[i] = abs(model[i] - base[i]) * factors[i]


@jit
def fusion(x, threshold, start, divergence, across, width):
    factors, least = np.empty(CHUNK, divergence.dtype), threshold[0]
    one, zero = x.dtype.type(1), x.dtype.type(0)
    for begin in range(0, x.shape[1], CHUNK):
        base, model = x[0, begin : begin + CHUNK], x[1, begin : begin + CHUNK]
        _spread(divergence, start + begin, across, width, factors[: base.size])
        for i in range(base.size):
            delta = model[i] - base[i]
            base[i] += delta * (one if threshold.dtype.type(abs(delta) * factors[i]) >= least else zero)


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
def linear_by_row(x, weights, start, across, width):
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
    """Write methods.sce.variance of the elements from `begin` on into found (n,)."""
    end, zero = begin + found.size, x.dtype.type(0)
    if x.shape[0] == 1:
        row = x[0, begin:end]
        for i in range(found.size):
            found[i] = row[i] * zero
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
    work = np.empty(VOTES, x.dtype)
    for begin in range(0, x.shape[1], VOTES):
        end = min(begin + VOTES, x.shape[1])
        found, out = work[: end - begin], x[0, begin:end]
        _variance(x, begin, found)
        for i in range(found.size):
            out[i] = found[i]


@jit
def sce(x, weights, threshold):
    one, zero = x.dtype.type(1), x.dtype.type(0)
    rounding = x.dtype.type((x.shape[0] + 1) * (2.0**-23 if x.itemsize == 4 else 2.0**-52))
    total, size = np.empty(VOTES, x.dtype), np.empty(VOTES, x.dtype)
    divisor, merged = np.empty(VOTES, x.dtype), np.empty(VOTES, x.dtype)
    for begin in range(0, x.shape[1], VOTES):
        end = min(begin + VOTES, x.shape[1])
        if threshold is not None:
            found, limit = merged[: end - begin], threshold[0]
            _variance(x, begin, found)
            for i in range(found.size):
                found[i] = one if threshold.dtype.type(found[i]) >= limit else zero
            for k in range(x.shape[0]):
                row = x[k, begin:end]
                for i in range(row.size):
                    row[i] *= found[i]
        out, first = x[0, begin:end], weights[0]
        for i in range(out.size):
            total[i] = out[i]
            size[i] = abs(out[i])
        for k in range(1, x.shape[0]):
            row = x[k, begin:end]
            for i in range(row.size):
                total[i] += row[i]
                size[i] += abs(row[i])
        for i in range(out.size):
            sign = -one if total[i] < -rounding * size[i] else one  # the elected sign
            size[i] = sign
            agrees = first if out[i] * sign > zero else zero
            divisor[i] = agrees
            merged[i] = out[i] * agrees
        for k in range(1, x.shape[0]):
            row, weight = x[k, begin:end], weights[k]
            for i in range(row.size):
                agrees = weight if row[i] * size[i] > zero else zero
                divisor[i] += agrees
                merged[i] += row[i] * agrees
        for i in range(out.size):
            out[i] = (merged[i] + total[i] * zero) / (divisor[i] if divisor[i] > zero else one)
