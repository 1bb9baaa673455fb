"""Numba loops that convert stored bits to float32 and back (see __init__.py for the rules of all loops)."""

from __future__ import annotations

import numpy as np
from numpy import float32, float64, uint32

from .compiling import jit

CHUNK = 1024  # elements that stay in the first-level cache


def float8_values(fraction: int, bias: int, largest: int, infinity: int) -> np.ndarray:
    """Return what every code of an 8-bit float stands for, (256,) float32.

    fraction: how many bits it has. bias: of the exponent. largest, infinity: the codes of the largest finite number, and of
    Inf, or of NaN if there is no Inf.
    """
    code = np.arange(128)
    exponent, last = np.divmod(code, 1 << fraction)
    values = np.ldexp(last + (exponent > 0) * (1 << fraction), np.maximum(exponent, 1) - bias - fraction)
    values[code > largest] = np.nan
    if infinity < 0x7F:
        values[infinity] = np.inf
    return np.concatenate([values, -values]).astype(np.float32)


_E4M3FN, _E5M2 = float8_values(3, 7, 0x7E, 0x7F), float8_values(2, 15, 0x7B, 0x7C)


@jit
def bits_of(value):
    return np.float32(value).view(np.uint32)


@jit
def float_of(bits):
    return np.uint32(bits).view(np.float32)


# --- bits to numbers, less the base ----------------------------------------------------------------------------------
# base is empty where weights are wanted instead of task vectors. Each returns whether there is a NaN or Inf in raw.


@jit
def _subtract(row, base):
    for i in range(base.size):
        row[i] -= base[i]


@jit
def load_bfloat16(raw, base, out):
    bad, kind = uint32(0), out.dtype.type
    if base.size:
        for i in range(raw.size):
            bits = uint32(raw[i])
            bad = uint32(bad | uint32((bits & uint32(0x7F80)) == uint32(0x7F80)))
            out[i] = kind(float_of(bits << uint32(16))) - base[i]
    else:
        for i in range(raw.size):
            bits = uint32(raw[i])
            bad = uint32(bad | uint32((bits & uint32(0x7F80)) == uint32(0x7F80)))
            out[i] = float_of(bits << uint32(16))
    return bad != uint32(0)


@jit
def load_float16(raw, base, out):
    bad = uint32(0)
    for begin in range(0, raw.size, CHUNK):
        source, row = raw[begin : begin + CHUNK], out[begin : begin + CHUNK]
        for i in range(source.size):
            bits = uint32(source[i])
            special = uint32((bits & uint32(0x7C00)) == uint32(0x7C00))
            bad = uint32(bad | special)
            # Shifted into place the exponent is 112 too small; the product puts it right, denormals included.
            small = float_of(uint32(bits & uint32(0x7FFF)) << uint32(13)) * float32(2.0**112)
            widened = uint32(bits_of(small) | uint32(uint32(bits & uint32(0x8000)) << uint32(16)))
            row[i] = float_of(widened | uint32(special * uint32(0x7F800000)))
        _subtract(row, base[begin : begin + CHUNK])
    return bad != uint32(0)


@jit
def _load_float8(raw, base, out, values, largest):
    """Convert by a table, values (256,): float32's denormals, which load_float16 uses, are slow, and most weights are
    small."""
    bad = uint32(0)
    for begin in range(0, raw.size, CHUNK):
        source, row = raw[begin : begin + CHUNK], out[begin : begin + CHUNK]
        for i in range(source.size):
            bad = uint32(bad | uint32((source[i] & uint32(0x7F)) > uint32(largest)))
            row[i] = values[source[i]]
        _subtract(row, base[begin : begin + CHUNK])
    return bad != uint32(0)


@jit
def load_float8_e4m3fn(raw, base, out):
    return _load_float8(raw, base, out, _E4M3FN, 0x7E)


@jit
def load_float8_e5m2(raw, base, out):
    return _load_float8(raw, base, out, _E5M2, 0x7B)


@jit
def load_float(raw, base, out):
    bad = 0
    for begin in range(0, raw.size, CHUNK):
        source, row = raw[begin : begin + CHUNK], out[begin : begin + CHUNK]
        for i in range(source.size):
            value = source[i]
            bad |= (value - value) != 0
            row[i] = value
        _subtract(row, base[begin : begin + CHUNK])
    return bad != 0


# --- numbers to bits, rounding to nearest even -----------------------------------------------------------------------
# Each returns whether a finite number became infinite (or NaN), or was not finite to begin with.


@jit
def store_bfloat16(values, raw):
    largest = uint32(0)
    for i in range(raw.size):
        value = float32(values[i])
        bits = bits_of(value)
        rounded = uint32(bits + uint32(0x7FFF) + uint32(uint32(bits >> uint32(16)) & uint32(1)))
        rounded = rounded if value == value else uint32(bits | uint32(0x400000))
        size = uint32(rounded << uint32(1))  # without the sign
        largest = size if size > largest else largest
        raw[i] = np.uint16(rounded >> uint32(16))
    return largest >= uint32(0xFF000000)


@jit
def store_float16(values, raw):
    bad = uint32(0)
    half = bits_of(float32(0.5))
    for i in range(raw.size):
        bits = bits_of(values[i])
        sign = uint32(uint32(bits >> uint32(16)) & uint32(0x8000))
        size = uint32(bits & uint32(0x7FFFFFFF))
        # Below the smallest normal number, adding 0.5 rounds to the spacing of float16's denormals.
        tiny = uint32(bits_of(float_of(size) + float32(0.5)) - half)
        odd = uint32(uint32(size >> uint32(13)) & uint32(1))
        normal = uint32(uint32(size - uint32(112 << 23) + uint32(0xFFF) + odd) >> uint32(13))
        value = tiny if size < uint32(113 << 23) else normal
        value = uint32(0x7C00) if size >= uint32(0x477FF000) else value  # 65520 and up round to infinity
        value = uint32(0x7E00) if size > uint32(0x7F800000) else value
        bad = uint32(bad | uint32(value >= uint32(0x7C00)))
        raw[i] = np.uint16(sign | value)
    return bad != uint32(0)


@jit
def _store_float8(values, raw, fraction, bias, largest, infinity, nan):
    """Round to 8-bit floats. fraction, bias, largest, infinity: as in float8_values; nan: its code. Larger numbers become
    infinity."""
    bad = uint32(0)
    dropped = uint32(23 - fraction)
    lift = uint32(127 - bias)
    magic = uint32(uint32(127 + 24 - bias - fraction) << uint32(23))  # whose last bit is worth the smallest denormal
    for i in range(raw.size):
        bits = bits_of(values[i])
        sign = uint32(uint32(bits >> uint32(24)) & uint32(0x80))
        size = uint32(bits & uint32(0x7FFFFFFF))
        tiny = uint32(bits_of(float_of(size) + float_of(magic)) - magic)
        odd = uint32(uint32(size >> dropped) & uint32(1))
        half = uint32(uint32(uint32(1) << uint32(dropped - uint32(1))) - uint32(1))
        normal = uint32(uint32(size - uint32(lift << uint32(23)) + half + odd) >> dropped)
        value = tiny if size < uint32(uint32(lift + uint32(1)) << uint32(23)) else normal
        value = uint32(infinity) if value > uint32(largest) else value
        value = uint32(nan) if size > uint32(0x7F800000) else value
        bad = uint32(bad | uint32(value > uint32(largest)))
        raw[i] = np.uint8(sign | value)
    return bad != uint32(0)


@jit
def store_float8_e4m3fn(values, raw):
    return _store_float8(values, raw, 3, 7, 0x7E, 0x7F, 0x7F)


@jit
def store_float8_e5m2(values, raw):
    return _store_float8(values, raw, 2, 15, 0x7B, 0x7C, 0x7E)


@jit
def store_float(values, raw):
    bad = 0
    for i in range(raw.size):
        value = raw.dtype.type(values[i])
        bad |= (value - value) != 0
        raw[i] = value
    return bad != 0


@jit
def round_to_odd(values, out):
    """Round float64 to float32 so that rounding the result to 16 or 8 bits rounds the float64 once (Boldo-Melquiond)."""
    for i in range(values.size):
        value = values[i]
        near = float32(value)
        bits = bits_of(near)
        inexact = uint32(float64(near) != value) & uint32((near - near) == float32(0))
        away = inexact & uint32(abs(float64(near)) > abs(value))
        out[i] = float_of(uint32(bits - away) | inexact)
