"""Loops that measure a tensor: histograms, dot products, sums and counts of its elements."""

from __future__ import annotations

import numpy as np
from numpy import float64, uint32

from .compiling import jit
from .folds import CHUNK, HALF, bin_shift, bits_of, fold_half

# --- measuring -------------------------------------------------------------------------------------------------------


@jit
def elected_balance(x, weights, by_count):
    """Return how many more elements elect plus than minus, as mergers.ties has it."""
    zero = x.dtype.type(0)
    rounding = x.dtype.type((x.shape[0] + 1) * (2.0**-23 if x.itemsize == 4 else 2.0**-52))
    balance = 0
    votes, size = np.empty(CHUNK, x.dtype), np.empty(CHUNK, x.dtype)
    for begin in range(0, x.shape[1], CHUNK):
        end = min(begin + CHUNK, x.shape[1])
        for i in range(CHUNK):
            votes[i] = zero
            size[i] = zero
        for k in range(x.shape[0]):
            row, weight = x[k, begin:end], weights[k]
            if by_count:
                for i in range(row.size):
                    value = row[i] * weight
                    votes[i] += x.dtype.type(value > zero) - x.dtype.type(value < zero)
            else:
                for i in range(row.size):
                    value = row[i] * weight
                    votes[i] += value
                    size[i] += abs(value)
        for i in range(end - begin):
            least = rounding * size[i]
            balance += int(votes[i] > least) - int(votes[i] < -least)
    return balance


@jit
def add_bins(x, counts):
    shift = bin_shift(counts.size)
    for i in range(x.size):
        counts[uint32(bits_of(abs(x[i])) >> shift)] += counts.dtype.type(1)


@jit
def add_gram(x, gram):
    """Add x @ x.T, in float64, to gram."""
    terms = np.empty(HALF, np.float64)
    for begin in range(0, x.shape[1], CHUNK):
        for j in range(x.shape[0]):
            for k in range(j + 1):
                a, b = x[j, begin : begin + CHUNK], x[k, begin : begin + CHUNK]
                if a.size == CHUNK:
                    for i in range(HALF):
                        terms[i] = float64(a[i]) * float64(b[i]) + float64(a[i + HALF]) * float64(b[i + HALF])
                else:
                    for i in range(HALF):
                        p = float64(a[i]) * float64(b[i]) if i < a.size else 0.0
                        terms[i] = p + (float64(a[i + HALF]) * float64(b[i + HALF]) if i + HALF < a.size else 0.0)
                gram[j, k] += fold_half(terms)
                gram[k, j] = gram[j, k]


@jit
def count_between(x, bounds, stride, counts, sums, values, flags, eights):
    """Count and collect one block, as Backend.count_between says.

    flags (CHUNK,) uint8: scratch space. eights: the same memory as uint64, of which a loop can't make a view without that
    compiling takes much longer.
    """
    kind = bounds.dtype.type
    lo, hi, infinity = bounds[0], bounds[1], kind(np.inf)
    sizes, halves = np.empty(CHUNK, x.dtype), np.empty((3, HALF), np.float64)
    found = np.empty(CHUNK // 8 + 1, np.uint32)
    inside, collected = counts[2], counts[4]
    for begin in range(0, x.size, CHUNK):
        chunk = x[begin : begin + CHUNK]
        below, at_lo, at_hi = uint32(0), uint32(0), uint32(0)
        for i in range(chunk.size):
            size = abs(chunk[i])
            sizes[i] = size
            m = kind(size) if kind(size) < infinity else infinity
            below = uint32(below + uint32(m < lo))
            at_lo = uint32(at_lo + uint32(m == lo))
            at_hi = uint32(at_hi + uint32(m == hi))
            flags[i] = np.uint8((m > lo) & (m < hi))
        for i in range(chunk.size, CHUNK):
            sizes[i], flags[i] = 0, 0
        counts[0] += below
        counts[1] += at_lo
        counts[3] += at_hi if hi != lo else uint32(0)

        if sums.size:
            for i in range(HALF):
                a, b = float64(sizes[i]), float64(sizes[i + HALF])
                halves[0, i] = a + b
                halves[1, i] = (0.0 if kind(sizes[i]) < hi else a) + (0.0 if kind(sizes[i + HALF]) < hi else b)
            if sums.size == 3:
                for i in range(HALF):
                    a, b = sizes[i], sizes[i + HALF]
                    m, n = kind(a) if kind(a) < infinity else infinity, kind(b) if kind(b) < infinity else infinity
                    halves[2, i] = (float64(a) if m == lo else 0.0) + (float64(b) if n == lo else 0.0)
            for j in range(sums.size):
                sums[j] += fold_half(halves[j])

        if stride == 1 and collected + chunk.size < values.size:  # one more than can be collected is written
            before = collected
            hits = 0
            for eight in range(eights.size):  # few have any; a branch for each would often be predicted wrongly
                found[hits] = eight
                hits += int(eights[eight] != 0)
            for k in range(hits):
                first = 8 * int(found[k])
                for i in range(first, first + 8):
                    values[collected] = sizes[i]
                    collected += flags[i]
            inside += collected - before
        else:
            for i in range(chunk.size):
                if flags[i]:
                    if inside % stride == 0 and collected < values.size:
                        values[collected] = sizes[i]
                        collected += 1
                    inside += 1
    counts[2] = inside
    counts[4] = collected


@jit
def count_active(x, epsilon, counts):
    """Add to counts (models, 2) the number of elements of each row beyond epsilon, where no other row's is, and where some
    other's is."""
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


@jit
def _dot(a, b, terms):
    """Return the dot product in float64: halves of the products are added onto each other. terms: scratch space."""
    for i in range(a.size):
        terms[i] = float64(a[i]) * float64(b[i])
    width = a.size
    while width > 1:
        half = (width + 1) // 2
        low, high = terms[:half], terms[half:width]
        for i in range(high.size):
            low[i] += high[i]
        width = half
    return terms[0]


@jit
def add_row_grams(x, start, across, width, grams):
    """Add to grams (pairs, vectors) the dot products of all pairs of models (0 0, 1 0, 1 1, 2 0 ...) in each vector."""
    done, size = 0, x.shape[1]
    terms = np.empty(CHUNK, np.float64)
    while done < size:
        line = (start + done) // width
        at = start + done - line * width
        end = min(done + width - at, done + CHUNK - (start + done) % CHUNK, size)
        pair = 0
        for j in range(x.shape[0]):
            for k in range(j + 1):
                a, b = x[j, done:end], x[k, done:end]
                if across:
                    sums = grams[pair, at : at + a.size]
                    for i in range(a.size):
                        sums[i] += float64(a[i]) * float64(b[i])
                else:
                    grams[pair, line] += _dot(a, b, terms)
                pair += 1
        done = end


EPSILON = 1e-8  # added to every probability


@jit
def add_exponentials(x, start, across, width, peaks, sums):
    """Update each row's largest element so far, peaks (rows,), and its sum of exp(element - peak), sums (rows,), with x, the
    elements from `start` on. NaN and Inf are left out."""
    line, place = start // width, start % width  # dividing for each element would take as long as its exponential
    for i in range(x.size):
        value = float64(x[i])
        if abs(value) < np.inf:
            row = place if across else line
            if value > peaks[row]:
                sums[row] = sums[row] * np.exp(peaks[row] - value) + 1.0
                peaks[row] = value
            else:
                sums[row] += np.exp(value - peaks[row])
        place += 1
        if place == width:
            line, place = line + 1, 0


@jit
def add_divergence(x, base, start, across, width, peaks, sums, divergence):
    """Add to divergence (rows,) the terms p log(p / q) of x and base, the elements from `start` on.

    peaks, sums: (2, rows), of x's rows and of base's.
    """
    line, place = start // width, start % width
    for i in range(x.size):
        a, b = float64(x[i]), float64(base[i])
        if abs(a) < np.inf and abs(b) < np.inf:
            row = place if across else line
            p = np.exp(a - peaks[0, row]) / sums[0, row] + EPSILON
            q = np.exp(b - peaks[1, row]) / sums[1, row] + EPSILON
            divergence[row] += p * np.log(p / q)
        place += 1
        if place == width:
            line, place = line + 1, 0


@jit
def add_magnitudes(x, unit, sums):
    terms = np.empty(HALF, np.float64)
    for begin in range(0, x.size, CHUNK):
        chunk = x[begin : begin + CHUNK]
        if chunk.size == CHUNK:
            for i in range(HALF):
                terms[i] = float64(abs(chunk[i])) * unit + float64(abs(chunk[i + HALF])) * unit
        else:
            for i in range(HALF):
                p = float64(abs(chunk[i])) * unit if i < chunk.size else 0.0
                terms[i] = p + (float64(abs(chunk[i + HALF])) * unit if i + HALF < chunk.size else 0.0)
        sums[0] += fold_half(terms)


@jit
def count_equal(x, values):
    """Return how many |x| equal values (1,); NaN counts as infinite."""
    kind, value, found = values.dtype.type, values[0], 0
    for begin in range(0, x.size, CHUNK):
        chunk = x[begin : begin + CHUNK]
        equal = uint32(0)
        if value == np.inf:
            for i in range(chunk.size):
                equal = uint32(equal + uint32(not kind(abs(chunk[i])) < value))
        else:
            for i in range(chunk.size):
                equal = uint32(equal + uint32(kind(abs(chunk[i])) == value))
        found += equal
    return found
