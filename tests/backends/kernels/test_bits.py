"""Test conversions to and from 32 bits, and the loops against formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddle_merge.backends.kernels import bits
from paddle_merge.backends.np_backend import NumpyBackend
from paddle_merge.dtypes import BFLOAT16, FLOAT16, FLOAT32, FLOAT64
from paddle_merge.methods.arcee_fusion import block_importance, fusion
from paddle_merge.methods.della import BINS, magnitude_bins, magprune
from paddle_merge.methods.ties import elect, ties
from paddle_merge.methods.trim import trim
from tests.support.checkpoints import from_bits, to_bits

ALL = np.arange(65536, dtype=np.uint16)
SINGLE, DOUBLE = NumpyBackend("float32"), NumpyBackend("float64")


def test_every_bfloat16_loads_and_comes_back() -> None:
    (values,), _, bad = SINGLE.load([ALL], [BFLOAT16], False)
    assert bad == [True]  # there are NaNs among them
    assert (values.view(np.uint32) == ALL.astype(np.uint32) << 16).all()
    raw, bad = SINGLE.store(values, BFLOAT16)
    assert bad
    nan = np.isnan(values)
    assert (raw[~nan] == ALL[~nan]).all()
    assert np.isnan(from_bits(raw[nan], "bfloat16")).all()


def test_every_float16_loads_as_numpy_does_and_comes_back() -> None:
    (values,), _, bad = SINGLE.load([ALL], [FLOAT16], False)
    assert bad == [True]
    expected = ALL.view(np.float16).astype(np.float32)
    assert ((values == expected) | (np.isnan(values) & np.isnan(expected))).all()
    assert (np.signbit(values) == np.signbit(expected)).all()
    raw, _ = SINGLE.store(values, FLOAT16)
    nan = np.isnan(values)
    assert (raw[~nan] == ALL[~nan]).all()
    assert np.isnan(raw[nan].view(np.float16)).all()


def interesting(dtype: Any) -> np.ndarray:
    """Random bits, and the neighbourhoods of every 16-bit float and of every point half-way between two."""
    generator = np.random.default_rng(0)
    random = generator.integers(0, 2**32, 1 << 20, dtype=np.uint32).view(np.float32)
    singles = np.concatenate([ALL.astype(np.uint32) << 16, (ALL.astype(np.uint32) << 16) | 0x8000]).view(np.float32)
    halves = ALL.view(np.float16).astype(np.float32)
    with np.errstate(all="ignore"):
        middles = (halves[:-1] + halves[1:]) / np.float32(2)
        values = np.concatenate([random, singles, halves, middles, [65504, 65519.99, 65520, 65536]]).astype(dtype)
        around = [values, np.nextafter(values, dtype(np.inf)), np.nextafter(values, dtype(-np.inf))]
        result = np.concatenate(around)
    return result[~np.isnan(result)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_float16_rounds_once_to_nearest_even(dtype: Any) -> None:
    """NumPy converts float32 and float64 to float16 directly."""
    values = interesting(dtype)
    raw, _ = NumpyBackend(np.dtype(dtype).name).store(values.copy(), FLOAT16)
    with np.errstate(over="ignore"):
        assert (raw == values.astype(np.float16).view(np.uint16)).all()


def test_bfloat16_rounds_once_to_nearest_even() -> None:
    values = interesting(np.float32)
    values = values[np.isfinite(values)]
    raw, _ = SINGLE.store(values.copy(), BFLOAT16)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = to_bits(values, "bfloat16")
    assert (raw == expected).all()


def test_float64_to_bfloat16_does_not_round_twice() -> None:
    """1 + 2^-8 + 2^-40 lies above the middle of 1 and 1 + 2^-7; through float32 it would become the middle, and then 1."""
    values = np.array(
        [1 + 2.0**-8 + 2.0**-40, 1 + 2.0**-8, 1 + 2.0**-8 - 2.0**-40, 1 + 3 * 2.0**-8 - 2.0**-40, -1 - 2.0**-8 - 2.0**-40]
    )
    raw, _ = DOUBLE.store(values, BFLOAT16)
    assert from_bits(raw, "bfloat16").tolist() == [1 + 2.0**-7, 1, 1, 1 + 2.0**-7, -1 - 2.0**-7]


@settings(max_examples=500, deadline=None)
@given(st.floats(-(2.0**128) * (1 - 2.0**-24), 2.0**128 * (1 - 2.0**-24)))
def test_round_to_odd(value: float) -> None:
    """Exact, or the neighbour whose last bit is odd."""
    out = np.empty(1, np.float32)
    bits.round_to_odd(np.array([value]), out)
    result = float(out[0])
    if result != value:
        assert out.view(np.uint32)[0] & 1
        with np.errstate(over="ignore"):
            low, high = np.nextafter(out[0], np.float32(-np.inf)), np.nextafter(out[0], np.float32(np.inf))
        assert float(low) < value < float(high)


@pytest.mark.parametrize(("dtype", "backend"), [(BFLOAT16, SINGLE), (FLOAT16, SINGLE), (FLOAT32, DOUBLE), (FLOAT64, DOUBLE)])
def test_load_notices_nan_and_inf_only(dtype: Any, backend: NumpyBackend) -> None:
    for value, bad in ((1.0, False), (np.nan, True), (np.inf, True), (-np.inf, True), (60000.0, False), (0.0, False)):
        raw = to_bits(np.array([0.0] * 1500 + [value] + [0.0] * 600), dtype.name).view(dtype.raw)
        assert backend.load([raw, raw], [dtype, dtype], False)[2] == [bad, bad]


def test_store_notices_overflow() -> None:
    assert not SINGLE.store(np.array([1, 65519, -65504], np.float32), FLOAT16)[1]
    assert SINGLE.store(np.array([1, 65520, 0], np.float32), FLOAT16)[1]
    assert SINGLE.store(np.array([1, 3.4e38, 0], np.float32), BFLOAT16)[1]
    assert DOUBLE.store(np.array([1e300, 0, 0]), FLOAT32)[1]


def blocks(dtype: str) -> np.ndarray:
    """(3, n) with exact cancellations, zeros and a length that is no multiple of anything."""
    generator = np.random.default_rng(1)
    x = generator.integers(-3, 4, (3, 2777)) / 4 + (generator.random((3, 2777)) < 0.5) * generator.standard_normal((3, 2777))
    return x.astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("by_count", [True, False])
@pytest.mark.parametrize("zero_sign", [1.0, 0.0, -1.0])
@pytest.mark.parametrize("normalize", [True, False])
def test_ties_loop_is_its_formula(dtype: str, by_count: bool, zero_sign: float, normalize: bool) -> None:
    x = blocks(dtype)
    weights = np.array([1, 2, 0.5], dtype)
    expected = ties(np, x, weights, by_count, zero_sign, normalize)
    result = NumpyBackend(dtype).apply(ties, x.copy(), weights, by_count, zero_sign, normalize)
    np.testing.assert_allclose(result, expected, rtol=1e-6 if dtype == "float32" else 1e-14, atol=1e-30)
    signs = elect(np, list(weights[:, None] * x), by_count, 0.0)
    assert NumpyBackend(dtype).elected_balance(elect, x, weights, by_count) == int(signs.sum())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_other_loops_are_their_formulas(dtype: str) -> None:
    backend = NumpyBackend(dtype)
    x = blocks(dtype)[0]
    threshold, factor = np.array([0.5], np.float32), backend.scalar(1.25)
    assert (backend.apply(trim, x.copy(), threshold, factor) == trim(np, x, threshold, factor)).all()
    counts = np.zeros(BINS, np.uint32)
    backend.add_bins(magnitude_bins, x, counts)
    assert (counts == np.bincount(magnitude_bins(np, x), minlength=BINS)).all()
    limits = np.random.default_rng(0).integers(0, 2**32, BINS, dtype=np.uint32)
    scales = np.random.default_rng(0).random(BINS).astype(dtype)
    from paddle_merge.backends.masks import hash_block

    expected = magprune(np, x, hash_block((5, 6), 0, x.size), limits, scales)
    assert (backend.apply_masked(magprune, x.copy(), (5, 6), limits, scales) == expected).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("across", [True, False])
@pytest.mark.parametrize("width", [1, 7, 2777, 5000])
def test_fusion_loops_are_their_formulas_bit_for_bit(dtype: str, across: bool, width: int) -> None:
    """Rows end within chunks, and the block begins within a row."""
    backend, x, start = NumpyBackend(dtype), blocks(dtype)[:2].copy(), 1 << 16
    x[0, 3], x[1, 5] = np.inf, np.nan
    divergence = np.random.default_rng(2).random(width if across else (start + x.shape[1]) // width + 1).astype(dtype)
    threshold = np.array([0.2], np.float32)
    with np.errstate(invalid="ignore"):
        for formula, args in ((block_importance, ()), (fusion, (threshold,))):
            expected = formula(np, x, *args, start, divergence, across, width)
            np.testing.assert_array_equal(
                backend.apply(formula, x.copy(), *args, start, divergence, across, width), expected
            )


def test_a_formula_without_a_loop_runs_as_it_stands() -> None:
    def halve(xp: Any, x: np.ndarray, by: float) -> np.ndarray:
        return xp.divide(x[0] + x[1], by)

    assert SINGLE.apply(halve, np.ones((2, 3), np.float32), 4.0).tolist() == [0.5, 0.5, 0.5]


def test_gram_is_exact_on_integers_and_adds_up() -> None:
    x = np.random.default_rng(0).integers(-9, 10, (3, 5000)).astype(np.float32)
    gram = np.zeros((3, 3))
    SINGLE.add_gram(x[:, :4096], gram)
    SINGLE.add_gram(x[:, 4096:], gram)
    assert (gram == x.astype(float) @ x.astype(float).T).all()
