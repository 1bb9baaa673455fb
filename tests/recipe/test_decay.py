"""Decays of the learning rate as averages of checkpoints."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paddle_merge.errors import ConfigError
from paddle_merge.recipe.decay import CURVES, average_weights


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        ("uniform", (0.25, 0.25, 0.25, 0.25)),
        ("linear", (0.25, 0.25, 0.25, 0.25)),  # factors 1, 3/4, 1/2, 1/4, 0: their differences
        # factors 1, (1 + sqrt(1/2)) / 2 = 0.853553, 1/2, 0.146447, 0
        ("cosine", (0.146447, 0.353553, 0.353553, 0.146447)),
        ("1-sqrt", (0.5, 0.207107, 0.158919, 0.133975)),  # factors 1, 1/2, 1 - sqrt(1/2), 1 - sqrt(3/4), 0
        ([1, 0.5, 0.25, 0.25], (0.5, 0.25, 0, 0.25)),
        ([0.5, 0.25, 0.25], (0.5, 0.25, 0, 0.25)),  # the first factor is always 1
    ],
)
def test_the_weights_of_four_checkpoints(decay: str | list[float], expected: tuple[float, ...]) -> None:
    assert average_weights(decay, 4) == pytest.approx(expected, abs=1e-6)


@given(st.lists(st.floats(0, 1), max_size=9), st.integers(0, 2**32 - 1))
def test_an_average_ends_where_a_run_with_that_decay_would(factors: list[float], seed: int) -> None:
    factors = [1.0, *sorted(factors, reverse=True)]
    steps = np.random.default_rng(seed).standard_normal(len(factors))  # changes at the full learning rate
    checkpoints = np.cumsum(steps)
    decayed = float(np.dot(steps, factors))
    assert np.dot(average_weights(factors, len(factors)), checkpoints) == pytest.approx(decayed, abs=1e-9)


@pytest.mark.parametrize("decay", CURVES)
@pytest.mark.parametrize("count", [1, 2, 7])
def test_weights_add_up_to_one(decay: str, count: int) -> None:
    weights = average_weights(decay, count)
    assert len(weights) == count
    assert min(weights) > 0
    assert sum(weights) == pytest.approx(1)


@pytest.mark.parametrize(
    ("decay", "count", "message"),
    [
        ("cosin", 3, "decay 'cosin' must be one of uniform, linear, cosine, 1-sqrt, or a list of numbers; did you mean"),
        ([1, 0.5], 4, "decay has 2 numbers; 4 checkpoints need 4, of which the first is 1, or the 3 after it"),
        ([0.9, 0.5], 2, "decay has 2 numbers; 2 checkpoints need 2, of which the first is 1"),
        ([1, 0.5, 0.6], 3, "must be numbers that fall from 1 to 0"),
        ([1, float("nan")], 2, "must be numbers that fall from 1 to 0"),
        ("linear", 0, "at least one checkpoint"),
    ],
)
def test_what_is_no_decay_is_refused(decay: str | list[float], count: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        average_weights(decay, count)
