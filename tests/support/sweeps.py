"""Choose the cases of a parametrized test for the default run. .ci/run also runs the others, marked `exhaustive`."""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import pytest


def few(values: Iterable[Any], count: int = 1, *, unpack: bool = False) -> list[Any]:
    """Return the values of a parameter; all behind the first `count` are for .ci/run, as each takes seconds.

    unpack: whether a value is a tuple, of what several parameters get.
    """
    return [value if number < count else _exhaustive(value, unpack) for number, value in enumerate(values)]


def every(values: Iterable[Any], step: int, *, unpack: bool = False) -> list[Any]:
    """Return the values of a parameter; all but every step-th are for .ci/run. unpack: as of `few`."""
    return [value if number % step == 0 else _exhaustive(value, unpack) for number, value in enumerate(values)]


def _exhaustive(value: Any, unpack: bool) -> Any:
    return pytest.param(*(value if unpack else (value,)), marks=pytest.mark.exhaustive)


def diagonal(cases: Sequence[Mapping[str, Hashable]]) -> list[int]:
    """Return the indices of a few cases in which every value of every parameter occurs.

    cases: for each case, the name of each parameter and what identifies its value.

    The case with the most values that none before it has is taken next; of several, one whose values occur least so far, so
    that the values of one parameter meet different values of the others. Of a test with one list of cases, all are taken.
    """
    missing = {value for case in cases for value in case.items()}
    used: Counter[tuple[str, Hashable]] = Counter()
    taken = []
    while missing:
        best = max(
            range(len(cases)),
            key=lambda index: (
                len(missing & cases[index].items()),
                -sum(used[value] for value in cases[index].items()),
                -index,
            ),
        )
        missing -= cases[best].items()
        used.update(cases[best].items())
        taken.append(best)
    return sorted(taken)


def in_pairs(cases: Sequence[Mapping[str, Hashable]], taken: Iterable[int] = ()) -> list[int]:
    """Return the indices of cases in which any two values that meet in some case meet: a covering array of strength two.

    cases: as of `diagonal`. taken: the indices of cases that are among them, whatever they add.

    With three parameters of m, n and o values these are about m * n cases, if o is the smallest, instead of m * n * o. The
    case with the most pairs that none before it has is taken next; of several, the first.
    """
    ordered = [sorted(case.items(), key=lambda item: item[0]) for case in cases]
    pairs = [set(itertools.combinations(values, min(2, len(values)))) for values in ordered]
    result = set(taken)
    missing = set().union(*pairs).difference(*(pairs[index] for index in result))
    # What a case adds only becomes less, so a case that adds as much as was noted adds the most.
    waiting = [(-len(own), index) for index, own in enumerate(pairs)]
    heapq.heapify(waiting)
    while missing:
        noted, index = heapq.heappop(waiting)
        added = len(pairs[index] & missing)
        if added < -noted:
            heapq.heappush(waiting, (-added, index))
        else:
            missing -= pairs[index]
            result.add(index)
    return sorted(result)
