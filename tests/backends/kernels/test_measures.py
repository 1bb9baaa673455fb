"""Test the loop that counts and collects magnitudes between two bounds, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddle_merge.backends.np_backend import NumpyBackend


def test_by_hand() -> None:
    """|x| = 1 2 2 3 4 5 5 NaN between 2 and 5: one below, two at 2, two between, two at 5; NaN is above."""
    x = np.array([1, -2, 2, 3, -4, 5, -5, np.nan], np.float32)
    counts, sums, values = np.zeros(5, np.int64), np.zeros(3), np.zeros(4, np.float32)
    NumpyBackend("float32").count_between(x, np.array([2, 5], np.float32), 1, counts, sums, values)
    assert counts.tolist() == [1, 2, 2, 2, 2]
    assert values.tolist() == [3, 4, 0, 0]
    assert np.isnan(sums[:2]).all()  # of all, and of those from 5 on
    assert sums[2] == 4


@settings(max_examples=200, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**32), size=st.integers(1, 5000), levels=st.sampled_from([2, 7, 100, 10**6]))
@pytest.mark.parametrize(("dtype", "compared"), [("float32", "float32"), ("float64", "float64"), ("float64", "float32")])
def test_as_numpy(dtype: str, compared: str, data: st.DataObject, seed: int, size: int, levels: int) -> None:
    """Room for fewer, as many and more than lie between; nothing is written behind it."""
    rng = np.random.default_rng(seed)
    x = (rng.integers(-levels, levels, size, endpoint=True) / 8).astype(dtype)
    bounds = np.sort(np.abs(rng.choice(x, 2))).astype(compared)
    size_of = np.abs(x)
    between = size_of[(size_of > bounds[0]) & (size_of < bounds[1])]
    stride = data.draw(st.integers(1, 3))
    chosen = between[::stride]
    room = data.draw(st.sampled_from([0, 1, len(chosen) // 2, len(chosen), len(chosen) + 1, size, size + 1, 2 * size]))
    counts, values = np.zeros(5, np.int64), np.full(room + 8, -1, dtype)
    sums = np.zeros(data.draw(st.sampled_from([0, 2, 3])))

    NumpyBackend(dtype).count_between(x, bounds, stride, counts, sums, values[:room])

    at_lo, at_hi = int((size_of == bounds[0]).sum()), int((size_of == bounds[1]).sum())
    collected = min(room, len(chosen))
    below = int((size_of < bounds[0]).sum())
    assert counts.tolist() == [below, at_lo, len(between), at_hi if bounds[0] < bounds[1] else 0, collected]
    assert values[:collected].tolist() == chosen[:collected].tolist()
    assert (values[room:] == -1).all()
    wide = size_of.astype(np.float64)  # eighths: no sum is rounded
    exact = [wide.sum(), wide[size_of >= bounds[1]].sum(), at_lo * float(bounds[0])]
    assert sums.tolist() == exact[: len(sums)]
