"""The Numba loops that the np backend runs: the twin of each formula in methods/, and what measures a tensor.

Three habits keep them fast: uint32 op uint32 becomes uint64 in Numba, so every integer step is cast back; a branch on random
data costs ten times an arithmetic select, so there are hardly any in loops over elements; work goes in chunks that stay in
the first-level cache. One keeps them the same everywhere: reductions fold chunks of fixed size in a fixed order, so they
don't depend on block sizes or on how wide this machine's vectors are.
"""

from __future__ import annotations

import numpy as np
from numpy import float64, uint32

from .bits import jit

CHUNK = 1024  # elements; every block starts at a multiple of it


@jit
def bits_of(value):
    return np.float32(value).view(np.uint32)


# --- adding the base back -------------------------------------------------------------------------------------------


@jit
def add_scaled(base, x, scale):
    for i in range(x.size):
        x[i] = base[i] + scale * x[i]


# --- adapters -------------------------------------------------------------------------------------------------------


@jit
def add_low_rank(x, start, left, right):
    """x, the elements from `start` on of a matrix (rows, columns), += left (rows, r) @ right (r, columns).

    Each element is summed over r in order, so it doesn't depend on where x begins and ends. Four terms at a time spare
    three quarters of the loads and stores of the sums.
    """
    rank, columns = right.shape
    sums = np.empty(CHUNK, x.dtype)
    done = 0
    while done < x.size:
        row = (start + done) // columns
        at = start + done - row * columns
        to = min(at + CHUNK, columns, at + x.size - done)
        for j in range(to - at):
            sums[j] = 0
        for k in range(0, rank - rank % 4, 4):
            a, b, c, d = left[row, k], left[row, k + 1], left[row, k + 2], left[row, k + 3]
            r, s, t, u = right[k, at:to], right[k + 1, at:to], right[k + 2, at:to], right[k + 3, at:to]
            for j in range(to - at):
                sums[j] = sums[j] + a * r[j] + b * s[j] + c * t[j] + d * u[j]
        for k in range(rank - rank % 4, rank):
            a, r = left[row, k], right[k, at:to]
            for j in range(to - at):
                sums[j] += a * r[j]
        for j in range(to - at):
            x[done + j] += sums[j]
        done += to - at


@jit
def add_squares(x, start, columns, axis, sums):
    """sums (rows,) or (columns,), float64 += the squares of x, the elements from `start` on, of each row or column."""
    for i in range(x.size):
        row = (start + i) // columns
        sums[row if axis == 0 else start + i - row * columns] += float64(x[i]) * float64(x[i])


@jit
def scale_lines(x, start, columns, axis, factors):
    """x, the elements from `start` on, *= its row's or column's factor."""
    for i in range(x.size):
        row = (start + i) // columns
        x[i] *= factors[row if axis == 0 else start + i - row * columns]


# --- sparsifiers: in place -------------------------------------------------------------------------------------------


@jit
def trim(x, threshold, factor):
    limit, zero = threshold[0], x.dtype.type(0)
    for i in range(x.size):
        x[i] *= factor if threshold.dtype.type(abs(x[i])) >= limit else zero


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
def dare(x, k0, k1, limits, scales):
    limit, scale, zero = limits[0], scales[0], x.dtype.type(0)
    for i in range(x.size):
        x[i] *= scale if hash_of(i, k0, k1) <= limit else zero


@jit
def _bin_shift(bins):
    """How far float32 bits of a magnitude, 31 of them, are shifted to index a table of this many bins, a power of two."""
    shift = uint32(31)
    while bins > 1:
        bins //= 2
        shift = uint32(shift - uint32(1))
    return shift


@jit
def magprune(x, k0, k1, limits, scales):
    shift = _bin_shift(limits.size)
    # One simple loop per step: together, the compiler would not vectorise any of them.
    bins, hashes = np.empty(CHUNK, np.int64), np.empty(CHUNK, np.uint32)
    limit, scale = np.empty(CHUNK, np.uint32), np.empty(CHUNK, x.dtype)
    for begin in range(0, x.size, CHUNK):
        chunk = x[begin : begin + CHUNK]
        for i in range(chunk.size):
            bins[i] = bits_of(abs(chunk[i])) >> shift
        for i in range(chunk.size):
            hashes[i] = hash_of(begin + i, k0, k1)
        for i in range(chunk.size):
            limit[i] = limits[bins[i]]
        for i in range(chunk.size):
            scale[i] = scales[bins[i]]
        for i in range(chunk.size):
            chunk[i] *= scale[i] * x.dtype.type(hashes[i] <= limit[i])


# --- merge types: the result replaces row 0 --------------------------------------------------------------------------


@jit
def linear(x, weights):
    merged = x[0]
    for i in range(merged.size):
        merged[i] *= weights[0]
    for k in range(1, x.shape[0]):
        row, weight = x[k], weights[k]
        for i in range(merged.size):
            merged[i] += row[i] * weight


@jit
def _vote(x, weights, by_count, begin, end, votes, total):
    """votes: what the elected sign is the sign of; total: the weighted sum. Both for the chunk begin..end."""
    zero = x.dtype.type(0)
    rounding = x.dtype.type((x.shape[0] + 1) * np.finfo(x.dtype).eps)
    size = np.empty(CHUNK, x.dtype)
    for i in range(votes.size):
        votes[i] = zero
        total[i] = zero
        size[i] = zero
    for k in range(x.shape[0]):
        row, weight = x[k, begin:end], weights[k]
        for i in range(row.size):
            value = row[i] * weight
            total[i] += value
            size[i] += abs(value)
        if by_count:
            for i in range(row.size):
                value = row[i] * weight
                votes[i] += x.dtype.type(value > zero) - x.dtype.type(value < zero)
    if not by_count:
        for i in range(votes.size):
            votes[i] = total[i] if abs(total[i]) > rounding * size[i] else zero


@jit
def ties(x, weights, by_count, zero_sign, normalize):
    one, zero = x.dtype.type(1), x.dtype.type(0)
    sign, total = np.empty(CHUNK, x.dtype), np.empty(CHUNK, x.dtype)
    divisor, merged = np.empty(CHUNK, x.dtype), np.empty(CHUNK, x.dtype)
    for begin in range(0, x.shape[1], CHUNK):
        end = min(begin + CHUNK, x.shape[1])
        s, t, d, m = sign[: end - begin], total[: end - begin], divisor[: end - begin], merged[: end - begin]
        _vote(x, weights, by_count, begin, end, s, t)
        for i in range(s.size):
            s[i] = one if s[i] > zero else (-one if s[i] < zero else x.dtype.type(zero_sign))
            m[i] = zero
            d[i] = zero
        for k in range(x.shape[0]):
            row, weight = x[k, begin:end], weights[k]
            for i in range(row.size):
                along = row[i] * weight * s[i]  # positive where the model agrees
                m[i] += max(along, zero)
                d[i] += weight if along > zero else zero
        out = x[0, begin:end]
        if normalize:
            for i in range(m.size):
                m[i] /= d[i] if d[i] != zero else one
        for i in range(m.size):
            out[i] = m[i] * s[i] + zero * t[i]  # 0 * total keeps NaN and Inf visible


# --- measuring -------------------------------------------------------------------------------------------------------


@jit
def elected_balance(x, weights, by_count):
    """How many more elements elect plus than minus."""
    n = x.shape[1]
    balance = 0
    votes, total = np.empty(CHUNK, x.dtype), np.empty(CHUNK, x.dtype)
    for begin in range(0, n, CHUNK):
        end = min(begin + CHUNK, n)
        v = votes[: end - begin]
        _vote(x, weights, by_count, begin, end, v, total[: end - begin])
        for i in range(v.size):
            balance += int(v[i] > 0) - int(v[i] < 0)
    return balance


@jit
def add_bins(x, counts):
    shift = _bin_shift(counts.size)
    for i in range(x.size):
        counts[uint32(bits_of(abs(x[i])) >> shift)] += counts.dtype.type(1)


@jit
def fold(terms):
    """The sum of CHUNK float64 terms: halves added onto each other. Overwrites them."""
    width = CHUNK // 2
    while width:
        for i in range(width):
            terms[i] += terms[i + width]
        width //= 2
    return terms[0]


@jit
def add_gram(x, gram):
    """gram += x @ x.T, in float64."""
    terms = np.empty(CHUNK, np.float64)
    for begin in range(0, x.shape[1], CHUNK):
        for j in range(x.shape[0]):
            for k in range(j + 1):
                a, b = x[j, begin : begin + CHUNK], x[k, begin : begin + CHUNK]
                for i in range(a.size):
                    terms[i] = float64(a[i]) * float64(b[i])
                terms[a.size :] = 0.0
                gram[j, k] += fold(terms)
                gram[k, j] = gram[j, k]


@jit
def count_between(x, bounds, stride, counts, sums, values):
    """One block of select.Bracket's pass."""
    kind = bounds.dtype.type
    lo, hi = bounds[0], bounds[1]
    magnitudes = np.empty(CHUNK, bounds.dtype)
    terms = np.empty((3, CHUNK), np.float64)
    inside, collected = counts[2], counts[4]
    for begin in range(0, x.size, CHUNK):
        chunk = x[begin : begin + CHUNK]
        m = magnitudes[: chunk.size]
        for i in range(m.size):
            value = kind(abs(chunk[i]))
            m[i] = value if value == value else kind(np.inf)

        below, at_lo, at_hi = uint32(0), uint32(0), uint32(0)
        for i in range(m.size):
            below = uint32(below + uint32(m[i] < lo))
            at_lo = uint32(at_lo + uint32(m[i] == lo))
            at_hi = uint32(at_hi + uint32(m[i] == hi))
        counts[0] += below
        counts[1] += at_lo
        counts[3] += at_hi if hi != lo else uint32(0)

        if sums.size:
            for i in range(m.size):
                value = float64(abs(chunk[i]))
                terms[0, i] = value
                terms[1, i] = value if m[i] >= hi else 0.0
                terms[2, i] = value if m[i] == lo else 0.0
            terms[:, m.size :] = 0.0
            for j in range(3):
                sums[j] += fold(terms[j])

        if stride == 1 and collected + m.size <= values.size:
            before = collected
            for group in range(0, m.size, 8):  # few groups hold any
                eight, exact = m[group : group + 8], chunk[group : group + 8]
                hits = uint32(0)
                for i in range(eight.size):
                    hits = uint32(hits + (uint32(eight[i] > lo) & uint32(eight[i] < hi)))
                if hits:
                    for i in range(eight.size):
                        values[collected] = abs(exact[i])
                        collected += (eight[i] > lo) & (eight[i] < hi)
            inside += collected - before
        else:
            for i in range(m.size):
                if m[i] > lo and m[i] < hi:
                    if inside % stride == 0 and collected < values.size:
                        values[collected] = abs(chunk[i])
                        collected += 1
                    inside += 1
    counts[2] = inside
    counts[4] = collected
