"""NearSwap (alchemonaut): elements of the base move to the other model's, but by no more than t.

mergekit: base + w delta, w = t / max(|delta|, 1e-6), between 0 and 1.
"""

from __future__ import annotations

import math
from typing import Any

from ..backends.backend import Backend
from ..backends.formula import formula
from ..records import record
from .shared.base import Merger, Tensor
from .shared.method import Method, Parameter, ResolvedMethod
from .shared.problems import Problem

_LEAST = 1e-6


@formula(kernel="mergers.nearswap")
def nearswap(xp: Any, x: Any, t: Any, limit: Any, gain: Any) -> Any:
    """Return gain * x where |x| < limit, else t with x's sign, (n,); NaN and Inf stay visible. x: one row (n,)."""
    (row,) = x
    near = (xp.abs(row) < limit).astype(row.dtype)
    return row * (near * gain) + xp.sign(row) * ((1 - near) * t)


@record(frozen=True)
class Nearswap(Merger):
    """Moves elements toward the model's. t: how far, at most, an element moves."""

    t: float

    def prepare(self, tensor: Tensor, backend: Backend) -> Any:
        t = max(self.t, 0.0)
        return tuple(map(backend.scalar, (t, max(t, _LEAST), min(t / _LEAST, 1.0))))

    def apply(self, x: Any, start: int, state: Any, backend: Backend) -> Any:
        return backend.apply(nearswap, x, *state)


def _nearswap(t: float) -> ResolvedMethod:
    return ResolvedMethod(None, Nearswap(t))


def _problems(t: float) -> list[Problem]:
    return [] if math.isfinite(t) else [Problem("t", f"{t:g} must be a number")]


METHODS = (
    Method(
        "nearswap",
        _nearswap,
        (Parameter("t", float, about="how far, at most, an element moves"),),
        about="a base takes over those values of another model that are near its own",
        about_cn="基础模型采用另一个模型中与自身接近的值",
        source="alchemonaut, QuartetAnemoi-70B",
        example={"t": 0.001},
        problems=_problems,
        base="required",
        most=1,
        mergekit=True,
        place=16,
    ),
)
