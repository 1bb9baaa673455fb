"""The Numba loops of an analysis (see __init__.py for the rules of all loops).

As in comparing.py, a block is taken LANES elements at a time, and lane i sums up every LANES-th element, so that no sum
depends on how wide this machine's vectors are.
"""

from __future__ import annotations

import numpy as np
from numpy import float64, uint32

from .compiling import jit
from .mergers import linear, ties

LANES = 256


@jit
def _fold(lanes, sums):
    """sums (k,) += the sum of each row of lanes (k, LANES): halves added onto each other. Overwrites them."""
    for k in range(lanes.shape[0]):
        width = LANES // 2
        while width:
            for i in range(width):
                lanes[k, i] += lanes[k, i + width]
            width //= 2
        sums[k] += lanes[k, 0]


@jit
def add_changes(x, base, model_counts, model_sums, largest, pair_counts, pair_sums):
    """Measure a block x (models, n) of task vectors, and the base's (n,): as add_models and add_pairs do."""
    add_models(x, base, model_counts, model_sums, largest)
    add_pairs(x, pair_counts, pair_sums)


@jit
def add_sparsified(x, s, first, weights, summing, electing, counts, sums, both, summed):
    """Measure a block x (models, n) of task vectors, and what a sparsifier made of it: s (models, n), which is overwritten.

    first (n,): scratch space. weights (models,): ones. summing, electing: whether models are added, and whether signs are
    elected. counts (models, 2) int64, sums (models, 4) float64: as of add_kept, then as of add_agreed. both (pairs,): as of
    count_both; (0,) if it isn't needed. summed (1,): the magnitudes of the sum of models.
    """
    add_kept(x, s, counts[:, 0], sums[:, :3])
    if both.size:
        count_both(s, both)
    first[:] = s[0]  # which the mergers overwrite with their result
    if summing:
        linear(s, weights)
        add_absolute(s[0], summed)
    if electing:
        s[0] = first
        ties(s, weights, False, 1.0, False)
        add_agreed(x, first, s, s[0], counts[:, 1], sums[:, 3])


@jit
def add_models(x, base, counts, sums, largest):
    """Measure a block x (models, n) of task vectors, and the base's (n,).

    counts (models, 1) int64: elements that aren't zero. sums (models, 4) float64: |x|, x**2, x * base, base**2. largest
    (models, 1) float64: the largest |x|.
    """
    for k in range(x.shape[0]):
        _add_model(x[k], base, counts[k], sums[k], largest[k])


@jit
def _add_model(x, base, counts, sums, largest):
    lanes, most = np.zeros((4, LANES), np.float64), np.zeros(LANES, x.dtype)
    one, other = np.empty(LANES, np.float64), np.empty(LANES, np.float64)
    absolute, squares, along, base_squares = lanes[0], lanes[1], lanes[2], lanes[3]
    for begin in range(0, x.size, LANES):
        a, b = x[begin : begin + LANES], base[begin : begin + LANES]
        changed = uint32(0)
        for i in range(a.size):
            changed = uint32(changed + uint32(a[i] != 0))
        counts[0] += changed
        for i in range(a.size):
            most[i] = max(most[i], abs(a[i]))
        for i in range(a.size):
            one[i] = float64(a[i])
        for i in range(a.size):
            other[i] = float64(b[i])
        for i in range(a.size):
            absolute[i] += abs(one[i])
        for i in range(a.size):
            squares[i] += one[i] * one[i]
        for i in range(a.size):
            along[i] += one[i] * other[i]
        for i in range(a.size):
            base_squares[i] += other[i] * other[i]
    _fold(lanes, sums)
    for i in range(LANES):
        largest[0] = max(largest[0], float64(most[i]))


@jit
def add_pairs(x, counts, sums):
    """Measure each pair of a block x (models, n) of task vectors, in the order of itertools.combinations.

    counts (pairs, 3) int64: elements that are zero in neither, those of them whose signs differ, and those that aren't
    equal. sums (pairs, 2) float64: the product, and its magnitude.
    """
    pair = 0
    for j in range(x.shape[0]):
        for k in range(j + 1, x.shape[0]):
            _add_pair(x[j], x[k], counts[pair], sums[pair])
            pair += 1


@jit
def _add_pair(x, y, counts, sums):
    lanes, product = np.zeros((2, LANES), np.float64), np.empty(LANES, np.float64)
    products, sizes = lanes[0], lanes[1]
    for begin in range(0, x.size, LANES):
        a, b = x[begin : begin + LANES], y[begin : begin + LANES]
        both, conflicts, different = uint32(0), uint32(0), uint32(0)
        for i in range(a.size):
            both = uint32(both + (uint32(a[i] != 0) & uint32(b[i] != 0)))
        for i in range(a.size):
            apart = (uint32(a[i] > 0) & uint32(b[i] < 0)) | (uint32(a[i] < 0) & uint32(b[i] > 0))
            conflicts = uint32(conflicts + apart)
        for i in range(a.size):
            different = uint32(different + uint32(a[i] != b[i]))
        counts[0] += both
        counts[1] += conflicts
        counts[2] += different
        for i in range(a.size):
            product[i] = float64(a[i]) * float64(b[i])
        for i in range(a.size):
            products[i] += product[i]
        for i in range(a.size):
            sizes[i] += abs(product[i])
    _fold(lanes, sums)


@jit
def add_kept(x, s, counts, sums):
    """Measure a block x (models, n) of task vectors, and what a sparsifier made of it: s (models, n).

    counts (models,) int64: elements of s that aren't zero. sums (models, 3) float64: |x| there, |s|, (s - x)**2.
    """
    for k in range(x.shape[0]):
        _add_kept(x[k], s[k], counts[k : k + 1], sums[k])


@jit
def _add_kept(x, s, counts, sums):
    lanes = np.zeros((3, LANES), np.float64)
    one, other = np.empty(LANES, np.float64), np.empty(LANES, np.float64)
    mass, scaled, error = lanes[0], lanes[1], lanes[2]
    for begin in range(0, x.size, LANES):
        a, b = x[begin : begin + LANES], s[begin : begin + LANES]
        kept = uint32(0)
        for i in range(a.size):
            kept = uint32(kept + uint32(b[i] != 0))
        counts[0] += kept
        for i in range(a.size):
            one[i] = float64(a[i])
        for i in range(a.size):
            other[i] = float64(b[i])
        for i in range(a.size):
            mass[i] += abs(one[i]) * float64(b[i] != 0)
        for i in range(a.size):
            scaled[i] += abs(other[i])
        for i in range(a.size):
            error[i] += (other[i] - one[i]) * (other[i] - one[i])
    _fold(lanes, sums)


@jit
def add_agreed(x, first, s, merged, counts, sums):
    """Measure the same, and what sign election made of all of them.

    first (n,): what the sparsifier made of x[0], in place of s[0]. counts (models,) int64: elements of s that have the sign
    of merged. sums (models,) float64: |x| there.
    """
    for k in range(x.shape[0]):
        _add_agreed(x[k], s[k] if k else first, merged, counts[k : k + 1], sums[k : k + 1])


@jit
def _add_agreed(x, s, merged, counts, sums):
    lanes, agrees = np.zeros((1, LANES), np.float64), np.empty(LANES, np.uint32)
    mass = lanes[0]
    for begin in range(0, x.size, LANES):
        a, b, m = x[begin : begin + LANES], s[begin : begin + LANES], merged[begin : begin + LANES]
        agreed = uint32(0)
        for i in range(a.size):
            agrees[i] = (uint32(b[i] > 0) & uint32(m[i] > 0)) | (uint32(b[i] < 0) & uint32(m[i] < 0))
        for i in range(a.size):
            agreed = uint32(agreed + agrees[i])
        counts[0] += agreed
        for i in range(a.size):
            mass[i] += float64(abs(a[i])) * float64(agrees[i])
    _fold(lanes, sums)


@jit
def add_absolute(x, sums):
    """Add |x| to sums (1,) float64."""
    lanes = np.zeros((1, LANES), np.float64)
    mass = lanes[0]
    for begin in range(0, x.size, LANES):
        a = x[begin : begin + LANES]
        for i in range(a.size):
            mass[i] += float64(abs(a[i]))
    _fold(lanes, sums)


@jit
def count_both(x, counts):
    """Add to counts (pairs,) int64, for each pair of x (models, n), how many elements are zero in neither. The pairs are in
    the order of itertools.combinations."""
    pair = 0
    for j in range(x.shape[0]):
        for k in range(j + 1, x.shape[0]):
            counts[pair] += _both(x[j], x[k])
            pair += 1


@jit
def _both(x, y):
    total = 0
    for begin in range(0, x.size, LANES):
        a, b = x[begin : begin + LANES], y[begin : begin + LANES]
        both = uint32(0)
        for i in range(a.size):
            both = uint32(both + (uint32(a[i] != 0) & uint32(b[i] != 0)))
        total += both
    return total
