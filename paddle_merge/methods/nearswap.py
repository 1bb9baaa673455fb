"""NearSwap (alchemonaut): elements of the base move to the other model's, but by no more than t.

mergekit: base + w delta, w = t / max(|delta|, 1e-6), between 0 and 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..backends.backend import Backend
from ..backends.budget import MemoryBudget
from ..backends.formula import formula
from .shared.base import Tensor
from .shared.method import Method, Parameter, ResolvedMethod

_LEAST = 1e-6


@formula(kernel="mergers.nearswap")
def nearswap(xp: Any, x: Any, t: Any, limit: Any, gain: Any) -> Any:
    """x: one row (n,) -> (n,): gain x where |x| < limit, else t with x's sign (NaN, Inf stay visible)."""
    (row,) = x
    near = (xp.abs(row) < limit).astype(row.dtype)
    return row * (near * gain) + xp.sign(row) * ((1 - near) * t)


@dataclass(frozen=True)
class Nearswap:
    """t: how far, at most, an element moves."""

    t: float

    measures = False

    def problems(self, models: int) -> list[str]:
        return []

    def effective_weights(self, models: int) -> Sequence[float]:
        return [1.0] * models

    def memory(self, models: int, size: int, itemsize: int, budget: MemoryBudget) -> int:
        return 0

    def prepare(self, tensor: Tensor, backend: Backend) -> Any:
        t = max(self.t, 0.0)
        return tuple(map(backend.scalar, (t, max(t, _LEAST), min(t / _LEAST, 1.0))))

    def apply(self, x: Any, start: int, state: Any, backend: Backend) -> Any:
        return backend.apply(nearswap, x, *state)


def _nearswap(t: float) -> ResolvedMethod:
    if not math.isfinite(t):
        raise ValueError(f"parameter 't' {t:g} must be a number")
    return ResolvedMethod(None, Nearswap(t))


METHODS = (
    Method(
        "nearswap",
        _nearswap,
        (Parameter("t", float, about="how far, at most, an element moves"),),
        base="required",
        most=1,
        source="alchemonaut, QuartetAnemoi-70B",
    ),
)
