"""Race candidates: score all of them on a few samples, and only the better ones on more (successive halving).

Jamieson and Talwalkar (2016), Non-stochastic Best Arm Identification and Hyperparameter Optimization; the budget is the
number of samples. All candidates of a generation are scored on the same samples (common random numbers), the next
generation on others, and a later round scores the samples of the earlier ones too, so that its scores can be compared with a
full evaluation's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from .job import Result
from .objectives import losses
from .spec import Race

Round = Callable[[Sequence[int], int, tuple[int, ...] | None], list[Result]]  # (places, round, samples) -> their results


def rounds(count: int, race: Race | None, total: int | None) -> list[tuple[int, int | None]]:
    """Return (number of candidates, number of samples) of each round; of a single one with all samples without a race.

    count: of candidates. total: number of samples; None: unknown. The last round has all samples.
    """
    if race is None or total is None or race.first >= total:
        return [(count, total)]
    found, samples = [(count, race.first)], race.first
    while samples < total:
        samples = min(total, samples * race.eta)
        found.append((max(1, math.ceil(found[-1][0] / race.eta)), samples))
    return found  # type: ignore[return-value]


def order_of(total: int, seed: int) -> tuple[int, ...]:
    """Return the places of all samples in the order in which rounds take them: a permutation drawn from the seed."""
    return tuple(np.random.Generator(np.random.Philox(key=seed)).permutation(total).tolist())


def shuffled(order: Sequence[int], seed: int, generation: int) -> tuple[int, ...]:
    """Return the samples in another order for each generation: if all raced on the same ones, a search would fit these."""
    return tuple(np.random.Generator(np.random.Philox(key=[seed, generation + 1])).permutation(np.array(order)).tolist())


def run(
    count: int,
    race: Race | None,
    order: Sequence[int] | None,
    objectives: Mapping[str, str],
    score: Round,
    everything: bool = True,
) -> tuple[list[Result], list[tuple[float, ...]], list[int]]:
    """Race `count` candidates.

    order: of the samples, as order_of returns it; None: they can't be chosen. score: scores some candidates.
    everything: whether `order` holds all samples of the split.
    Returns, per candidate, its last result; its losses, such that whoever came further is better, and a failure is the
    worst; and the last round that it was in.
    """
    total = None if order is None else len(order)
    plan = rounds(count, race, total)
    alive, results = list(range(count)), dict[int, Result]()
    reached = [0] * count
    rows: list[tuple[float, ...]] = [()] * count
    floor: tuple[float, ...] | None = None
    eliminated: list[list[int]] = []
    for number, (kept, samples) in enumerate(plan):
        if number:
            ranked = sorted(alive, key=lambda place: (_rank(rows, alive, place), place))
            eliminated.append(ranked[kept:])
            alive = sorted(ranked[:kept])
        all_of_them = samples is None or (samples == total and everything)
        chosen = None if order is None or all_of_them else tuple(sorted(order[:samples]))
        for place, result in zip(alive, score(alive, number, chosen), strict=True):
            results[place], reached[place] = result, number
        for place, row in zip(alive, losses([results[place] for place in alive], objectives), strict=True):
            rows[place] = row
    for out in reversed(eliminated):  # who was eliminated is worse than everybody who came further, by its own distance
        ahead = [rows[place] for place in range(count) if reached[place] > reached[out[0]]] if out else []
        if ahead:
            floor = tuple(max(row[axis] for row in ahead) for axis in range(len(ahead[0])))
            least = tuple(min(rows[place][axis] for place in out) for axis in range(len(floor)))
            for place in out:
                rows[place] = tuple(
                    max(value, floor[axis] + (value - least[axis]) + 1e-9 * max(1.0, abs(floor[axis])))
                    for axis, value in enumerate(rows[place])
                )
    return [results[place] for place in range(count)], _failures_last(results, rows), reached


def _failures_last(results: Mapping[int, Result], rows: Sequence[tuple[float, ...]]) -> list[tuple[float, ...]]:
    """Return losses in which a candidate that failed, in whichever round, is worse than every other one."""
    known = [row for place, row in enumerate(rows) if not results[place].error]
    if not known:
        return list(rows)
    worst = tuple(max(values) + max(max(values) - min(values), 1.0) for values in zip(*known, strict=True))
    return [worst if results[place].error else row for place, row in enumerate(rows)]


def _rank(rows: Sequence[tuple[float, ...]], alive: Sequence[int], place: int) -> int:
    """Return how many candidates beat one: for one objective its rank, for several how many are better in all of them."""
    mine = rows[place]
    return sum(
        all(theirs <= own for theirs, own in zip(rows[other], mine, strict=True)) and rows[other] != mine for other in alive
    )
