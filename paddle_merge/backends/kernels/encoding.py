"""Numba loops that store numbers as 8-bit codes, with a scale for each block of them (see __init__.py for the rules)."""

from __future__ import annotations

import numpy as np
from numpy import float32, uint32

from .bits import _E4M3FN, bits_of, float_of, store_float8_e4m3fn
from .compiling import jit

LARGEST = float32(448)  # the largest number of float8_e4m3fn
SMALLEST = float32(2.0**-126)  # of scales: below it, float32 has fewer digits


@jit
def encode_e4m3fn(values, rows, width, narrow, powers, codes, scales):
    """Round values (n, columns) float32 to codes of the same shape, with scales (bands, blocks) float32.

    rows, width: of a block; those at the end may be smaller. A scale is the block's largest magnitude / 448, rounded once,
    or 1 for a block of zeros. A code is value * (448 / magnitude), rounded to nearest even. NaN and Inf have the code of
    NaN, and don't count for the scale. Codes are equal to those of transformers' Fp8Quantize.
    narrow: whether scales are rounded once more, to numbers of bfloat16. powers: whether they are rounded up to powers of 2.
    Then a code is value * (1 / scale).
    """
    columns = values.shape[1]
    largest, factors, scaled = np.empty(columns, uint32), np.empty(columns, float32), np.empty(columns, float32)
    for band in range(scales.shape[0]):
        first, last = band * rows, min((band + 1) * rows, values.shape[0])
        largest[:] = uint32(0)
        for i in range(first, last):
            _raise(values[i], largest)
        for block in range(scales.shape[1]):
            begin, end = block * width, min((block + 1) * width, columns)
            magnitude = float_of(largest[begin:end].max())
            if magnitude == float32(0):
                scale = factor = float32(1)
            elif magnitude < LARGEST * SMALLEST:
                scale, factor = SMALLEST, float32(1) / SMALLEST
            else:
                scale, factor = magnitude / LARGEST, LARGEST * (float32(1) / magnitude)  # as torch computes 448 / magnitude
            if narrow:
                scale = _to_bfloat16(scale)
                factor = float32(1) / scale
            if powers:
                scale = float_of(uint32(uint32(bits_of(scale) + uint32(0x7FFFFF)) & uint32(0xFF800000)))
                factor = float32(1) / scale
            scales[band, block] = scale
            factors[begin:end] = factor
        for i in range(first, last):
            row = values[i]
            for k in range(columns):
                scaled[k] = row[k] * factors[k]
            store_float8_e4m3fn(scaled, codes[i])
        for block in range(scales.shape[1]):
            begin, end = block * width, min((block + 1) * width, columns)
            if not narrow and not powers:
                box = values[first:last, begin:end], codes[first:last, begin:end]
                scales[band, block] = _settled(box[0], box[1], scales[band, block])


@jit
def _to_bfloat16(value):
    """Round a positive float32 to the nearest number that bfloat16 has, of two the even one."""
    bits = bits_of(value)
    rounded = uint32(bits + uint32(0x7FFF) + uint32(uint32(bits >> uint32(16)) & uint32(1)))
    return float_of(uint32(rounded & uint32(0xFFFF0000)))


@jit
def _raise(row, largest):
    """Raise largest (n,) to the magnitudes of row (n,), both as bits, where those are finite."""
    for k in range(row.size):
        bits = uint32(bits_of(row[k]) & uint32(0x7FFFFFFF))
        bits = bits if bits < uint32(0x7F800000) else uint32(0)
        largest[k] = max(largest[k], bits)


@jit
def _settled(values, codes, scale):
    """Return the scale with which the codes give the values exactly: `scale` or a neighbour of it; `scale` if none does.

    Values that were read from codes and scales are rounded products, so largest / 448 may be one unit off in the last place
    from the scale that they had.
    """
    bits = bits_of(scale)
    for step in (0, 1, -1):
        other = float_of(uint32(bits + uint32(step)))
        if _gives(values, codes, other):
            return other
    return scale


@jit
def _gives(values, codes, scale):
    for i in range(values.shape[0]):
        for k in range(values.shape[1]):
            if float32(_E4M3FN[codes[i, k]] * scale) != values[i, k] and values[i, k] == values[i, k]:
                return False
    return True
