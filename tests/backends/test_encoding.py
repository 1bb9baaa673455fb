"""Test the loop that stores numbers as 8-bit codes with a scale for each block.

The oracle rounds with ml_dtypes; the hand-sized example was computed with a pocket calculator.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddle_merge.backends.kernels.encoding import encode_e4m3fn

F32 = np.float32


def encode(
    values: np.ndarray, rows: int, width: int, narrow: bool = False, powers: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Return codes and scales of values (n, columns)."""
    codes = np.empty(values.shape, np.uint8)
    scales = np.empty((-(-values.shape[0] // rows), -(-values.shape[1] // width)), F32)
    encode_e4m3fn(np.ascontiguousarray(values, F32), rows, width, narrow, powers, codes, scales)
    return codes, scales


def spread(scales: np.ndarray, shape: tuple[int, int], rows: int, width: int) -> np.ndarray:
    """Return the scale of each element."""
    return np.repeat(np.repeat(scales, rows, 0), width, 1)[: shape[0], : shape[1]]


def decode(codes: np.ndarray, scales: np.ndarray, rows: int, width: int) -> np.ndarray:
    numbers = codes.view(ml_dtypes.float8_e4m3fn).astype(F32)
    return np.asarray(numbers * spread(scales, codes.shape, rows, width), F32)


def test_by_hand() -> None:
    """The largest magnitudes are 2, 0.875, 0 and 1: 448 / 2 = 224. 1.06 * 224 = 237.44 is nearer to 240 than to 224."""
    values = np.array([[0.5, -1.0, 0.875, 0.0], [2.0, 1.06, -0.4375, 0.0], [0.0, 0.0, 1.0, -0.5]])
    codes, scales = encode(values, 2, 2)
    assert codes.view(ml_dtypes.float8_e4m3fn).astype(float).tolist() == [
        [112, -224, 448, 0],
        [448, 240, -224, 0],
        [0, 0, 448, -224],
    ]
    assert codes[:2].tolist() == [[0x6E, 0xF6, 0x7E, 0], [0x7E, 0x77, 0xF6, 0]]
    assert scales.tolist() == [[F32(2) / F32(448), F32(0.875) / F32(448)], [1, F32(1) / F32(448)]]


def test_powers_of_two() -> None:
    """300 / 448 is rounded up to 1, 0.25 * 449 / 448 to 0.5, and 448 * 4 / 448 is 4; a scale is never below float32's."""
    values = np.array([[300, -18, 112.25, 0.5, 1792, 4, 0, 0, 1e-40, 0]])
    codes, scales = encode(values, 1, 2, powers=True)
    assert scales.tolist() == [[1, 0.5, 4, 1, 2.0**-126]]
    assert codes.view(ml_dtypes.float8_e4m3fn).astype(float).tolist() == [[288, -18, 224, 1, 448, 1, 0, 0, 2**-7, 0]]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 17), st.integers(1, 17), st.integers(0, 2**32 - 1))
def test_like_an_independent_reading(n: int, columns: int, rows: int, width: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    values = (random.standard_normal((n, columns)) * 10.0 ** random.integers(-30, 30)).astype(F32)
    codes, scales = encode(values, rows, width)
    for band in range(0, n, rows):
        for block in range(0, columns, width):
            box = values[band : band + rows, block : block + width]
            largest = np.abs(box).max()
            factor = F32(448) * (F32(1) / largest)
            assert scales[band // rows, block // width] == largest / F32(448)
            wanted = (box * factor).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
            np.testing.assert_array_equal(codes[band : band + rows, block : block + width], wanted)
    # The bound that checkpoints/README.md states: half a step of 3 binary digits, or half of the smallest step.
    error = np.abs(decode(codes, scales, rows, width).astype(float) - values)
    largest = 448 * spread(scales, values.shape, rows, width).astype(float)
    assert (error <= 1.000001 * np.maximum(np.abs(values) / 16, largest / 458752)).all()


@pytest.mark.parametrize("seed", range(5))
def test_codes_and_scales_survive_a_round_trip(seed: int) -> None:
    """Where a block's largest code is 448, reading them as float32 numbers and encoding those gives the same bits.

    Of the scales largest / 448 itself would be off in the last place in about one block of eight.
    """
    random = np.random.default_rng(seed)
    codes = random.integers(0, 256, (96, 160)).astype(np.uint8)
    codes[codes & 0x7F == 0x7F] = 0  # NaN
    codes[::16, ::16] = random.choice([0x7E, 0xFE], (6, 10))
    scales = random.uniform(1e-6, 1e-2, (6, 10)).astype(F32)
    values = decode(codes, scales, 16, 16)
    again, found = encode(values, 16, 16)
    np.testing.assert_array_equal(again, codes)
    np.testing.assert_array_equal(found, scales)
    naive = np.abs(values).reshape(6, 16, 10, 16).max((1, 3)) / F32(448)
    assert (naive != scales).any()


def test_what_is_no_ordinary_number() -> None:
    """NaN and Inf become NaN and change no other number; blocks whose scale would be too small have the smallest one."""
    values = np.array([[1.0, np.nan], [-np.inf, 0.5], [1e-44, -1e-40], [0.0, 3e-37], [3e38, -1.0], [1.0, 2.0]], F32)
    codes, scales = encode(values, 2, 2)
    found = decode(codes, scales, 2, 2)
    assert codes[:2].tolist() == [[0x7E, 0x7F], [0xFF, 0x76]]
    assert scales[:, 0].tolist() == [F32(1) / F32(448), F32(2.0**-126), F32(3e38) / F32(448)]
    np.testing.assert_allclose(found[2:4], values[2:4], rtol=1 / 16, atol=2.0**-136)
    np.testing.assert_allclose(found[4:], [[3e38, 0], [0, 0]], rtol=1e-6)


def test_nothing_but_nan() -> None:
    codes, scales = encode(np.full((2, 2), np.nan, F32), 2, 2)
    assert (codes & 0x7F == 0x7F).all()
    assert scales.tolist() == [[1]]


def test_narrow_scales() -> None:
    """1 / 448 = 1.14285714 * 2**-9 becomes 1.140625 * 2**-9; 0.3 / that is 134.66, which is nearer to 128 than to 144."""
    codes, scales = encode(np.array([[1.0, 0.3, -0.001]]), 1, 3, narrow=True)
    assert scales.tolist() == [[1.140625 * 2.0**-9]]
    assert codes.view(ml_dtypes.float8_e4m3fn).astype(float).tolist() == [[448, 128, -0.4375]]
