"""Provide NumPy's functions on Paddle tensors, as far as formulas use them: pd_backend.py passes this module as `xp`.

Unsigned 32-bit integers, which Paddle lacks, are int32 of the same bits. Formulas compare floats with < and >: in Paddle ==
is also true of numbers within 1e-8 of each other.
"""

from __future__ import annotations

from typing import Any

import paddle

float32 = "float32"
uint32 = "int32"
abs = paddle.abs
sign = paddle.sign
finfo = paddle.finfo
nan_to_num = paddle.nan_to_num


def maximum(x: Any, other: float) -> Any:
    """Return the larger of x and 0, the only bound that formulas use. Raises NotImplementedError for another."""
    if other != 0:
        raise NotImplementedError("maximum of a tensor and a number other than 0")
    return paddle.nn.functional.relu(x)


def divide(x: Any, y: Any) -> Any:
    """Return x / y, rounded as IEEE 754 demands. On the CPU Paddle's division of equal shapes is off by one ulp for 0.3 % of
    numbers; its broadcasting division is right."""
    return (x.unsqueeze(0) / y).squeeze(0)


def arange(start: int, stop: int) -> Any:
    """Return start .. stop - 1, (stop - start,) int64."""
    return paddle.arange(start, stop, dtype="int64")


def floor_divide(x: Any, divisor: int) -> Any:
    """Return x // divisor. x: int64, not negative."""
    return paddle.floor_divide(x, paddle.full([1], divisor, "int64"))


def remainder(x: Any, divisor: int) -> Any:
    """Return x % divisor. x: int64, not negative."""
    return paddle.remainder(x, paddle.full([1], divisor, "int64"))


def take(table: Any, indices: Any) -> Any:
    """Return table[indices], (n,). table: (bins,). indices: (n,)."""
    return paddle.gather(table, indices)


def right_shift(x: Any, bits: int) -> Any:
    """Return x >> bits of int32 x, taken as unsigned; 0 < bits < 31."""
    if hasattr(paddle, "bitwise_right_shift"):
        return paddle.bitwise_right_shift(x, full(bits), is_arithmetic=False)
    low = paddle.floor_divide(x & full(0x7FFFFFFF), full(1 << bits))  # Paddle 2.6
    return low | (x < 0).astype("int32") * full(1 << (31 - bits))


def full(value: int) -> Any:
    """Return the lowest 32 bits of value as (1,) int32. (Paddle adds and multiplies Python's integers as floats.)"""
    return paddle.full([1], (value & 0xFFFFFFFF) - ((value & 0x80000000) << 1), "int32")
