"""What alignment gained and cost, and what a point keeps of both. Expected numbers are worked by hand."""

from __future__ import annotations

import pytest

from paddle_merge.search.tax import Tax

GOALS = {"reward": "maximize", "reading": "maximize"}


def point(reward: float, reading: float) -> dict[str, float]:
    return {"reward": reward, "reading": reading}


TAX = Tax(GOALS, "reward", point(8.0, 40.0), point(10.0, 36.0))


def test_the_ends_are_the_corners_of_the_unit_box() -> None:
    assert (TAX.kept(TAX.pre), TAX.bought_back("reading", TAX.pre)) == (0.0, 1.0)
    assert (TAX.kept(TAX.aligned), TAX.bought_back("reading", TAX.aligned)) == (1.0, 0.0)
    # 9.5 keeps 1.5 of 2; 39 buys back 3 of 4
    assert (TAX.kept(point(9.5, 39.0)), TAX.bought_back("reading", point(9.5, 39.0))) == (0.75, 0.75)
    assert TAX.kept(point(11.0, 0.0)) == 1.5


def test_directions_make_no_difference() -> None:
    turned = Tax({"reward": "minimize", "reading": "minimize"}, "reward", point(-8.0, -40.0), point(-10.0, -36.0))
    assert turned.kept(point(-9.5, -39.0)) == turned.bought_back("reading", point(-9.5, -39.0)) == 0.75
    assert str(turned.bought_back("reading", turned.aligned)) == "0.0"
    assert turned.hypervolume([point(-9.5, -39.0)]) == pytest.approx(0.5625)


def test_hypervolume_is_the_share_of_the_box_below_the_points() -> None:
    assert TAX.hypervolume([]) == 0.0
    assert TAX.hypervolume([point(9.5, 39.0)]) == pytest.approx(0.5625)  # 0.75 x 0.75
    # (0.5, 1) and (1, 0.5): 0.5 + 0.5 x 0.5
    assert TAX.hypervolume([point(9.0, 40.0), point(10.0, 38.0)]) == pytest.approx(0.75)
    assert TAX.hypervolume([point(12.0, 50.0)]) == 1.0  # better than both ends is no more than the whole box
    assert TAX.hypervolume([point(12.0, 30.0), point(0.0, 50.0)]) == 0.0  # worse than both in one
    line = [point(8.0 + 2 * a / 1000, 40.0 - 4 * a / 1000) for a in range(1001)]
    assert TAX.hypervolume(line) == pytest.approx(TAX.straight_line(), abs=1e-3) == 0.5


def test_with_two_capabilities_it_is_a_volume() -> None:
    goals = {"reading": "maximize", "reward": "maximize", "loss": "minimize"}
    pre, aligned = {"reading": 40.0, "reward": 8.0, "loss": 1.0}, {"reading": 36.0, "reward": 10.0, "loss": 2.0}
    tax = Tax(goals, "reward", pre, aligned)
    assert tax.capabilities == ["reading", "loss"]
    assert tax.hypervolume([{"reading": 38.0, "reward": 9.0, "loss": 1.25}]) == pytest.approx(0.5 * 0.5 * 0.75)
    # The line (a, 1 - a, 1 - a): the integral of (1 - a)^2 is 1/3
    line = [{"reading": 40.0 - 4 * a / 500, "reward": 8.0 + 2 * a / 500, "loss": 1.0 + a / 500} for a in range(501)]
    assert tax.hypervolume(line) == pytest.approx(1 / 3, abs=2e-3)
    assert tax.straight_line() == pytest.approx(1 / 3)


def test_where_nothing_was_gained_or_lost_there_is_no_share() -> None:
    free = Tax(GOALS, "reward", point(8.0, 36.0), point(10.0, 37.0))
    assert free.bought_back("reading", point(9.0, 36.5)) is None
    assert free.hypervolume([point(9.0, 36.5)]) is None
    assert free.remarks() == ["alignment cost nothing on reading: 36 before it, 37 after it"]
    useless = Tax(GOALS, "reward", point(8.0, 40.0), point(8.0, 36.0))
    assert useless.kept(point(8.0, 38.0)) is None
    assert useless.hypervolume([point(8.0, 38.0)]) is None
    assert useless.remarks() == [
        "alignment didn't raise the reward: reward is 8 before it and 8 after it, so there is no share of it to keep"
    ]
    assert TAX.remarks() == []
