"""Test the loop that orders the elements of rows by magnitude, against NumPy's stable sort."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddle_merge.backends.kernels.row_ranks import order_rows


def ordered(rows: np.ndarray, digit: int) -> np.ndarray:
    order = np.empty(rows.shape, np.uint32)
    order_rows(rows, digit, order)
    return order


def test_a_row_by_hand() -> None:
    """Equal magnitudes by index; NaN, whose bits are larger than Inf's, last."""
    rows = np.array([[3.0, 1.0, np.inf, 1.0, 0.0, np.nan, 1.5], [0.0] * 7], np.float32)
    assert ordered(rows, 4).tolist() == [[4, 1, 3, 6, 0, 2, 5], list(range(7))]


@settings(deadline=None, max_examples=50)
@given(
    st.integers(1, 3000),
    st.integers(4, 11),
    st.sampled_from(["anything", "few values", "16 bits", "one octave"]),
    st.integers(0, 2**32),
)
def test_any_rows(length: int, digit: int, kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 1 << 31, (3, length), np.uint32)
    if kind == "few values":
        bits = rng.choice(bits[0, :5], bits.shape)
    elif kind == "16 bits":
        bits &= np.uint32(0xFFFF0000)
    elif kind == "one octave":
        bits = bits % np.uint32(1 << 23) + np.uint32(127 << 23)
    expected = np.argsort(bits, axis=1, kind="stable")
    assert np.array_equal(ordered(bits.view(np.float32), digit), expected)


@pytest.mark.parametrize("shape", [(0, 5), (5, 1)])
def test_nothing_to_order(shape: tuple[int, int]) -> None:
    assert ordered(np.ones(shape, np.float32), 4).tolist() == np.zeros(shape).tolist()
