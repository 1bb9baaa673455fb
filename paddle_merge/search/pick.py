"""Pick one of several best candidates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .objectives import losses
from .outcome import Scored
from .spec import SearchSpec


def picked(front: Sequence[Scored], spec: SearchSpec) -> Scored:
    """Return the candidate nearest to the best value of every objective, each measured by its spread on the front."""
    rows = np.array(losses([one.known for one in front], spec.objectives), np.float64)
    spread = np.ptp(rows, axis=0)
    far = (rows - rows.min(axis=0)) / np.where(spread > 0, spread, 1.0)
    return front[int(np.argmin((far**2).sum(axis=1)))]
