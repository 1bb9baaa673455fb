"""The Numba loops of an analysis (see __init__.py for the rules of all loops).

They measure a block of one tensor, or several small tensors of the same size, in all models: x (models, tensors, n) are
task vectors. A block is taken LANES elements at a time, and lane i sums up every LANES-th element, so that no sum depends on
how wide this machine's vectors are. A loop over elements does all that is done with them: with a loop for each sum, and
functions of their own, compiling took four times as long. Arrays are copied by loops: to copy a slice to another, Numba
compiles the text of an error message, too, which takes two seconds.
"""

from __future__ import annotations

import numpy as np
from numpy import float64

from .compiling import jit

LANES = 256


@jit
def _fold(lanes, first, sums):
    """sums (k,) += the sum of each of k rows of lanes (rows, LANES) from `first` on, halves added onto each other, and set
    these to zero."""
    for k in range(sums.size):
        row, width = lanes[first + k], LANES // 2
        while width:
            for i in range(width):
                row[i] += row[i + width]
            width //= 2
        sums[k] += row[0]
        for i in range(LANES):
            row[i] = 0.0


@jit
def add_changes(x, base, counts, sums, largest, pair_counts, pair_sums):
    """Measure task vectors x (models, tensors, n) of base (tensors, n), and each pair of models, in the order of
    itertools.combinations.

    counts (tensors, models) int64: elements that aren't zero. sums (tensors, models, 4) float64: |x|, x**2, x * base,
    base**2. largest (tensors, models) float64: the largest |x|. pair_counts (tensors, pairs, 3) int64: elements that are
    zero in neither, those of them whose signs differ, and those that aren't equal. pair_sums (tensors, pairs, 2) float64:
    the product, and its magnitude.
    """
    models, tensors, size = x.shape
    lanes = np.zeros((5, LANES), np.float64)
    one, two, three, four, most = lanes[0], lanes[1], lanes[2], lanes[3], lanes[4]
    for t in range(tensors):
        pair = 0
        for j in range(models):
            changed = 0
            for begin in range(0, size, LANES):
                a, b = x[j, t, begin : begin + LANES], base[t, begin : begin + LANES]
                for i in range(a.size):
                    p, q = float64(a[i]), float64(b[i])
                    magnitude = abs(p)
                    changed += p != 0.0
                    one[i] += magnitude
                    two[i] += p * p
                    three[i] += p * q
                    four[i] += q * q
                    most[i] = magnitude if magnitude > most[i] else most[i]
            counts[t, j] += changed
            _fold(lanes, 0, sums[t, j])
            for i in range(LANES):
                if most[i] > largest[t, j]:
                    largest[t, j] = most[i]
                most[i] = 0.0
            for k in range(j + 1, models):
                both, conflicts, different = 0, 0, 0
                for begin in range(0, size, LANES):
                    a, b = x[j, t, begin : begin + LANES], x[k, t, begin : begin + LANES]
                    for i in range(a.size):
                        p, q = float64(a[i]), float64(b[i])
                        both += (p != 0.0) & (q != 0.0)
                        conflicts += ((p > 0.0) & (q < 0.0)) | ((p < 0.0) & (q > 0.0))
                        different += p != q
                        one[i] += p * q
                        two[i] += abs(p * q)
                pair_counts[t, pair, 0] += both
                pair_counts[t, pair, 1] += conflicts
                pair_counts[t, pair, 2] += different
                _fold(lanes, 0, pair_sums[t, pair])
                pair += 1


@jit
def add_sparsified(x, s, rounding, work, counts, sums, summed, both):
    """Measure task vectors x (models, tensors, n), and what a sparsifier made of them: s, in the same shape.

    rounding: of a sum of models, as mergers.ties has it. work (3, LANES): scratch space, of x's dtype. counts (tensors,
    models, 2) int64: elements of s that aren't zero, and those of them that have the sign which mergers.ties elects, with
    weights 1. sums (tensors, models, 4) float64: |x| of the former, |s|, (s - x)**2, and |x| of the latter. summed (tensors,
    1) float64: the magnitudes of the sums of models. both (tensors, pairs) int64: elements that are zero in neither model of
    a pair, in the order of itertools.combinations; (tensors, 0) if they aren't needed.
    """
    models, tensors, size = x.shape
    total, most, sign = work[0], work[1], work[2]
    zero = total.dtype.type(0)
    lanes = np.zeros((4 * models + 1, LANES), np.float64)
    for t in range(tensors):
        for begin in range(0, size, LANES):
            end = begin + LANES if begin + LANES < size else size
            for i in range(LANES):
                total[i], most[i] = zero, zero
            for k in range(models):
                b = s[k, t, begin:end]
                for i in range(b.size):
                    total[i] += b[i]
                    most[i] += abs(b[i])
            mass = lanes[4 * models]
            for i in range(end - begin):
                mass[i] += float64(abs(total[i]))
                against = -total[i] > rounding * most[i]
                sign[i] = zero * total[i] + (-1 if against else 1)  # NaN where the sum isn't finite, as in mergers.ties
            for k in range(models):
                a, b = x[k, t, begin:end], s[k, t, begin:end]
                one, two, three, four = lanes[4 * k], lanes[4 * k + 1], lanes[4 * k + 2], lanes[4 * k + 3]
                kept, agreed = 0, 0
                for i in range(a.size):
                    p, q = float64(a[i]), float64(b[i])
                    is_kept, agrees = q != 0.0, q * float64(sign[i]) > 0.0
                    kept += is_kept
                    agreed += agrees
                    one[i] += abs(p) * float64(is_kept)
                    two[i] += abs(q)
                    three[i] += (q - p) * (q - p)
                    four[i] += abs(p) * float64(agrees)
                counts[t, k, 0] += kept
                counts[t, k, 1] += agreed
        for k in range(models):
            _fold(lanes, 4 * k, sums[t, k])
        _fold(lanes, 4 * models, summed[t])
        pair = 0
        for j in range(models if both.shape[1] else 0):
            for k in range(j + 1, models):
                a, b = s[j, t], s[k, t]
                found = 0
                for i in range(size):
                    found += (a[i] != zero) & (b[i] != zero)
                both[t, pair] += found
                pair += 1
