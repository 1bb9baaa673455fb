"""Test assignments against all permutations, and against SciPy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from paddle_merge.backends.kernels.assignment import assign


def assigned(cost: np.ndarray) -> np.ndarray:
    columns = np.empty(len(cost), np.int64)
    assign(cost, columns)
    return columns


def test_by_hand() -> None:
    """Row 1 wants column 0 most, and row 0 gives up the least: 2 + 1 + 3 = 6, where 1 + 2 + 9 = 12."""
    cost = np.array([[1.0, 2.0, 9.0], [1.0, 9.0, 9.0], [9.0, 2.0, 3.0]])
    assert assigned(cost).tolist() == [1, 0, 2]


@given(st.integers(1, 6).flatmap(lambda n: arrays.arrays(np.float32, (n, n), elements=st.integers(-9, 9))))
@settings(max_examples=150, deadline=None)
def test_no_permutation_costs_less(cost: np.ndarray) -> None:
    found = assigned(cost)
    places = np.arange(len(cost))
    assert sorted(found) == places.tolist()
    assert cost[places, found].sum() == min(cost[places, list(order)].sum() for order in itertools.permutations(places))


def test_as_scipy() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    random = np.random.default_rng(0)
    for count in (30, 200):
        for cost in (random.normal(size=(count, count)), random.integers(0, 5, (count, count)).astype(float)):
            rows, columns = optimize.linear_sum_assignment(cost)
            assert cost[rows, assigned(cost)].sum() == pytest.approx(cost[rows, columns].sum(), abs=1e-9)
