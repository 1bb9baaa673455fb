"""Test the loops that make MAGPRUNE's tables against the same formula in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddle_merge.backends import masks
from paddle_merge.backends.kernels import keep_tables
from paddle_merge.backends.kernels.keep_tables import fill_elements, fill_tables, number_bins
from paddle_merge.backends.masks import keep_limit
from paddle_merge.methods.della import BINS, magnitude_bins

FILLED = 7  # what a table holds where there are no elements


def by_numpy(counts: np.ndarray, density: float, epsilon: float) -> np.ndarray:
    """The keep probability of each bin that has elements."""
    larger = counts.sum() - counts.cumsum(dtype=np.int64)
    mean_rank = larger + (counts - 1.0) / 2.0
    keep = 1.0 - ((1.0 - density) - epsilon / 2.0 + epsilon / counts.sum() * mean_rank)
    return np.clip(keep, masks.FINEST, 1.0)


def test_the_finest_probability_is_that_of_masks() -> None:
    assert keep_tables.FINEST == masks.FINEST


@settings(deadline=None)
@given(
    counts=st.lists(st.integers(0, 1 << 20) | st.just(0), min_size=1, max_size=64).filter(any),
    density=st.floats(0.01, 1.0),
    share=st.floats(0.0, 1.0),
    divide=st.booleans(),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_tables(counts: list[int], density: float, share: float, divide: bool, dtype: type) -> None:
    epsilon = share * 2.0 * min(density, 1.0 - density)
    for counter in (np.uint32, np.uint64):
        bins = np.array(counts, counter)
        limits, scales = np.full(len(bins), FILLED, np.uint32), np.full(len(bins), FILLED, dtype)
        fill_tables(bins, density, epsilon, divide, limits, scales)
        some = bins > 0
        keep = by_numpy(bins[some].astype(np.int64), density, epsilon)
        assert limits[some].tolist() == keep_limit(keep).tolist()
        assert scales[some].tobytes() == (1.0 / keep if divide else np.ones(len(keep))).astype(dtype).tobytes()
        assert (limits[~some] == FILLED).all()
        assert (scales[~some] == FILLED).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_elements_have_what_is_in_their_bins(dtype: type) -> None:
    rng = np.random.default_rng(0)
    numbers = rng.standard_normal((3, 700)) * 10.0 ** rng.integers(-45, 45, (3, 700))
    with np.errstate(over="ignore"):
        x = numbers.astype(dtype)
    x[1, :400] = rng.choice([0.0, -0.0, 1.0, -1.0, np.inf, -np.nan], 400)
    x[2] = 0.5
    keys, limits, scales = np.empty(x.shape, np.uint64), np.zeros(x.shape, np.uint32), np.zeros_like(x)
    number_bins(x, BINS, keys)
    keys.sort(axis=1)
    densities = np.array([0.4, 0.5, 0.7])
    fill_elements(keys, densities, 0.3, True, limits, scales)
    for row, density, limit, scale in zip(x, densities, limits, scales, strict=True):
        with np.errstate(over="ignore"):
            bins = magnitude_bins(np, row)
        _, place, counts = np.unique(bins, return_inverse=True, return_counts=True)
        keep = by_numpy(counts, density, 0.3)[place]
        assert limit.tolist() == keep_limit(keep).tolist()
        assert scale.tobytes() == (1.0 / keep).astype(dtype).tobytes()
