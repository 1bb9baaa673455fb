"""Test the loops that order the elements of rows by magnitude, against NumPy's stable sort, and that keep some of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddle_merge.backends.kernels.row_ranks import keep_ranked, order_rows
from paddle_merge.backends.masks import hash_block


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


@pytest.mark.parametrize("first", [0, 5, (1 << 32) - 21, 1 << 32])
@pytest.mark.parametrize("step", [1, 3])
def test_what_is_kept_of_a_row(first: int, step: int) -> None:
    """Also of one that crosses element 2**32, whose number has 33 bits. Other bits stay as they are."""
    length, key = 37, (0xFFFFFFF0, 7)
    order = np.random.default_rng(first).permutation(length).astype(np.uint32)
    limits = np.linspace(0, 0xFFFFFFFF, length).astype(np.uint32)
    elements = [first + step * place for place in range(length)]
    wanted = {elements[place] for place, limit in zip(order, limits, strict=True) if hash_of(key, elements[place]) <= limit}
    kept = np.zeros((elements[-1] >> 3) + 2, np.uint8)  # memory that is never written to takes none
    kept[-1] = 0xA5
    keep_ranked(order[None], np.array([first]), step, *map(np.uint32, key), limits, kept)
    assert kept[-1] == 0xA5
    begin = first // 8
    found = np.flatnonzero(np.unpackbits(kept[begin:-1])) + 8 * begin
    assert set(found.tolist()) == wanted
    assert 0 < len(wanted) < length


def hash_of(key: tuple[int, int], element: int) -> int:
    return int(hash_block(key, element, 1)[0])
