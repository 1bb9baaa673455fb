"""Compare candidates by their metrics: losses for optimisers, and which candidates no other one beats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .job import Result


def losses(results: Sequence[Result], objectives: Mapping[str, str]) -> list[tuple[float, ...]]:
    """Return a row per result with a number per objective, smaller is better.

    A failed evaluation is worse than every other one in every objective, by as much as these differ.
    """
    signs = [-1.0 if direction == "maximize" else 1.0 for direction in objectives.values()]
    rows = [
        tuple(sign * result.metrics[name] for sign, name in zip(signs, objectives, strict=True))
        if not result.error
        else None
        for result in results
    ]
    known = np.array([row for row in rows if row is not None], np.float64).reshape(-1, len(signs))
    worst = known.max(axis=0) + np.maximum(np.ptp(known, axis=0), 1.0) if len(known) else np.ones(len(signs))
    return [row if row is not None else tuple(worst.tolist()) for row in rows]


def best(rows: Sequence[Sequence[float]]) -> list[int]:
    """Return the places of the rows that no other one beats: none is as good in every objective and better in one.

    Of equal rows the first counts. In the order of the first objective, the best first.
    """
    from moocore import is_nondominated

    kept = np.flatnonzero(is_nondominated(np.array(rows, np.float64))).tolist() if rows else []
    return sorted(kept, key=lambda place: (tuple(rows[place]), place))
