"""Test how candidates are compared."""

from __future__ import annotations

from paddle_merge.search.job import Result
from paddle_merge.search.objectives import best, losses


def test_losses() -> None:
    """Smaller is better; a failure is worse than the worst, by as much as the others differ, and by 1 at least."""
    results = [Result(0, {"a": 0.5, "b": 3}), Result(1, {"a": 2.5, "b": 3}), Result(2, error="no")]
    assert losses(results, {"a": "maximize", "b": "minimize"}) == [(-0.5, 3), (-2.5, 3), (1.5, 4)]


def test_losses_if_all_fail() -> None:
    assert losses([Result(0, error="no")], {"a": "maximize"}) == [(1.0,)]


def test_best() -> None:
    """(1, 3) and (2, 1) are beaten by nobody; of two equal rows the first counts."""
    assert best([(2, 1), (1, 3), (2, 2), (3, 3), (1, 3)]) == [1, 0]
    assert best([]) == []
