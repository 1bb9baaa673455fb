"""Test races: who sees how many samples, and how losses rank."""

from __future__ import annotations

import pytest

from paddle_merge.search.job import Result
from paddle_merge.search.race import order_of, rounds, run, shuffled
from paddle_merge.search.spec import Race


@pytest.mark.parametrize(
    ("count", "race", "total", "expected"),
    [
        (9, None, 100, [(9, 100)]),
        (9, Race(10, 3), 90, [(9, 10), (3, 30), (1, 90)]),
        (9, Race(10, 3), 100, [(9, 10), (3, 30), (1, 90), (1, 100)]),
        (7, Race(5, 2), 20, [(7, 5), (4, 10), (2, 20)]),
        (9, Race(100, 3), 90, [(9, 90)]),
        (9, Race(10, 3), None, [(9, None)]),
    ],
)
def test_rounds(count: int, race: Race | None, total: int | None, expected: list[tuple[int, int]]) -> None:
    assert rounds(count, race, total) == expected


def test_everybody_sees_the_same_samples_and_the_better_ones_more() -> None:
    """Candidate k's loss is the sum of (k + sample) % 7 over its samples; by hand on the first three: see below."""
    order = (4, 0, 2, 1, 3, 5)
    seen: list[tuple[list[int], tuple[int, ...] | None]] = []

    def score(places: list[int], number: int, samples: tuple[int, ...] | None) -> list[Result]:
        seen.append((list(places), samples))
        chosen = range(6) if samples is None else samples
        return [Result(place, {"loss": float(sum((place + one) % 7 for one in chosen))}) for place in places]

    results, rows, reached = run(4, Race(2, 2), order, {"loss": "minimize"}, score)  # type: ignore[arg-type]
    # On samples 0 and 4: candidate 0: 0 + 4; 1: 1 + 5; 2: 2 + 6; 3: 3 + 0. So 3 and 0 go on, to 0, 1, 2 and 4:
    # 0: 0 + 1 + 2 + 4 = 7; 3: 3 + 4 + 5 + 0 = 12. So 0 is scored on all: 0 + 1 + 2 + 3 + 4 + 5 = 15.
    assert seen == [([0, 1, 2, 3], (0, 4)), ([0, 3], (0, 1, 2, 4)), ([0], None)]
    assert reached == [2, 0, 0, 1]
    assert [result.metrics["loss"] for result in results] == [15, 6, 8, 12]
    losses = [row[0] for row in rows]
    assert sorted(range(4), key=losses.__getitem__) == [0, 3, 1, 2]
    assert losses[2] - losses[1] == pytest.approx(2)  # the eliminated keep their distances


def test_failures_drop_out_first() -> None:
    def score(places: list[int], number: int, samples: tuple[int, ...] | None) -> list[Result]:
        return [Result(place, error="no") if place < 2 else Result(place, {"a": float(place)}) for place in places]

    _, rows, reached = run(4, Race(1, 2), (0, 1), {"a": "maximize"}, score)  # type: ignore[arg-type]
    assert reached == [0, 0, 1, 1]
    assert max(row[0] for row in rows[2:]) < min(row[0] for row in rows[:2])


def test_a_failure_in_a_later_round_is_the_worst_too() -> None:
    def score(places: list[int], number: int, samples: tuple[int, ...] | None) -> list[Result]:
        return [
            Result(place, error="no") if place == 3 and number else Result(place, {"a": float(place)}) for place in places
        ]

    results, rows, reached = run(4, Race(1, 2), (0, 1), {"a": "maximize"}, score)  # type: ignore[arg-type]
    assert reached == [0, 0, 1, 1]
    assert results[3].error == "no"
    assert sorted(range(4), key=lambda place: rows[place][0]) == [2, 1, 0, 3]


def test_the_order_of_samples_depends_on_the_seed() -> None:
    assert sorted(order_of(20, 3)) == list(range(20))
    assert order_of(20, 3) == order_of(20, 3) != order_of(20, 4)


def test_each_generation_has_its_own_order() -> None:
    orders = [shuffled((4, 9, 2, 7, 5), 3, generation) for generation in range(20)]
    assert {tuple(sorted(order)) for order in orders} == {(2, 4, 5, 7, 9)}
    assert len(set(orders)) > 10
    assert orders[4] == shuffled((4, 9, 2, 7, 5), 3, 4) != shuffled((4, 9, 2, 7, 5), 2, 4)


def test_of_a_part_of_the_samples_all_are_named() -> None:
    seen: list[tuple[int, ...] | None] = []

    def score(places: list[int], number: int, samples: tuple[int, ...] | None) -> list[Result]:
        seen.append(samples)
        return [Result(place, {"a": float(place)}) for place in places]

    run(4, None, (7, 3), {"a": "maximize"}, score, everything=False)  # type: ignore[arg-type]
    run(4, Race(1, 2), (7, 3), {"a": "maximize"}, score, everything=False)  # type: ignore[arg-type]
    assert seen == [(3, 7), (7,), (3, 7)]
