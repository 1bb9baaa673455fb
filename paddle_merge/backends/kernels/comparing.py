"""The Numba loops of a comparison (see __init__.py for the rules of all loops).

A block is taken LANES elements at a time, and lane i sums up every LANES-th element, so that no sum depends on how wide this
machine's vectors are. Everything between two loops stays in the first-level cache.
"""

from __future__ import annotations

import numpy as np
from numpy import float64, int64, uint32

from .compiling import jit

LANES = 256
BUCKETS = 65  # distances 0, 1, 2-3, 4-7 ... up to below 2**64


@jit
def add_block(x, y, sums, counts, finite):
    """Add what x and y (n,), float32 or float64, differ by.

    sums (6,) float64: |x - y|, (x - y)**2, x**2, y**2, x * y, summed where both are finite, and the largest |x - y| there.
    counts (4,) int64: elements that differ (a NaN equals a NaN), that are not finite in x, and in y, and that are in both.
    finite (n,) uint8: set to whether both are finite.
    """
    one, other, gap = np.empty(LANES, np.float64), np.empty(LANES, np.float64), np.empty(LANES, np.float64)
    lanes = np.zeros((6, LANES), np.float64)
    for begin in range(0, x.size, LANES):
        a, b, ok = x[begin : begin + LANES], y[begin : begin + LANES], finite[begin : begin + LANES]
        changed, bad_a, bad_b, good = uint32(0), uint32(0), uint32(0), uint32(0)
        for i in range(a.size):
            numbers = uint32(a[i] == a[i]) | uint32(b[i] == b[i])
            changed = uint32(changed + (uint32(a[i] != b[i]) & numbers))
        for i in range(a.size):
            bad_a = uint32(bad_a + uint32((a[i] - a[i]) != 0))
            bad_b = uint32(bad_b + uint32((b[i] - b[i]) != 0))
        counts[0] += changed
        counts[1] += bad_a
        counts[2] += bad_b
        if bad_a | bad_b:
            for i in range(a.size):
                both = ((a[i] - a[i]) == 0) & ((b[i] - b[i]) == 0)
                ok[i] = both
                good = uint32(good + uint32(both))
                one[i] = float64(a[i]) if both else 0.0
                other[i] = float64(b[i]) if both else 0.0
            counts[3] += good
        else:
            for i in range(a.size):
                one[i] = float64(a[i])
            for i in range(a.size):
                other[i] = float64(b[i])
            ok[:] = 1
            counts[3] += a.size
        for i in range(a.size):
            gap[i] = abs(one[i] - other[i])
        absolute, squares, squares_a = lanes[0], lanes[1], lanes[2]
        squares_b, products, largest = lanes[3], lanes[4], lanes[5]
        for i in range(a.size):
            absolute[i] += gap[i]
        for i in range(a.size):
            squares[i] += gap[i] * gap[i]
        for i in range(a.size):
            squares_a[i] += one[i] * one[i]
        for i in range(a.size):
            squares_b[i] += other[i] * other[i]
        for i in range(a.size):
            products[i] += one[i] * other[i]
        for i in range(a.size):
            largest[i] = gap[i] if gap[i] > largest[i] else largest[i]
    for k in range(5):
        width = LANES // 2
        while width:
            for i in range(width):
                lanes[k, i] += lanes[k, i + width]
            width //= 2
        sums[k] += lanes[k, 0]
    for i in range(LANES):
        sums[5] = max(sums[5], lanes[5, i])


@jit
def add_distances(one, other, sign, finite, buckets):
    """Add to buckets (BUCKETS,) int64 how many elements lie 0, 1, 2-3, 4-7 ... representable numbers apart, where finite.

    one, other (n,) uint32 or uint64: their bits, of one dtype. sign: the bit that says minus, below which stands the
    magnitude; 0 if there is none. Minus and plus zero are 0 apart.
    """
    kind = one.dtype.type
    distance, bits = np.empty(LANES, one.dtype), np.empty(LANES, np.float32)
    bins = np.empty(LANES, np.int32)
    tables = np.zeros((4, 256), np.int64)  # four, so that equal neighbours don't wait for each other
    below = kind(sign - kind(1)) if sign else kind(~kind(0))
    for begin in range(0, one.size, LANES):
        p, q, ok = one[begin : begin + LANES], other[begin : begin + LANES], finite[begin : begin + LANES]
        for i in range(p.size):
            a, b = kind(p[i] & below), kind(q[i] & below)
            apart = kind(a - b) if a > b else kind(b - a)
            distance[i] = kind(a + b) if kind(kind(p[i] ^ q[i]) & sign) else apart
        for i in range(p.size):  # without the second of its bits it can't round up to the next power of two
            bits[i] = np.float32(kind(distance[i] & kind(~kind(distance[i] >> kind(1)))))
        exponents = bits.view(np.uint32)
        for i in range(p.size):
            bins[i] = (exponents[i] >> uint32(23)) if ok[i] else 255
        for i in range(p.size):
            tables[i & 3, bins[i]] += int64(1)
    for k in range(4):
        buckets[0] += tables[k, 0]
        for bucket in range(1, BUCKETS):
            buckets[bucket] += tables[k, 126 + bucket]
