"""NuSLERP (mergekit): interpolate two models along an arc, as slerp.py does, with t from the ratio of their weights; with a
base model, along the arc between their task vectors. Of whole tensors, or of every row or column by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..records import record
from .shared.angles import Angles, ByAngles
from .shared.method import WEIGHT, Method, Parameter, ResolvedMethod
from .shared.rows import Rows, rows_of

_LEAST = 1e-7  # norms below this count as it, so that tiny vectors have no angle


def arc(found: Angles, t: float) -> Any:
    """Return the two models' factors for each of n vectors, (2, n): sin((1-t) angle) / sin(angle) and sin(t angle) /
    sin(angle); 1-t and t where the vectors are parallel."""
    norms = np.where(found.known, found.norms, _LEAST)
    shares = np.minimum(norms, _LEAST) / _LEAST
    cosine = np.where(found.known, found.cosines[0, 1] * shares[0] * shares[1], 1.0)
    angle = np.arccos(np.where(np.abs(cosine) < 1.0, cosine, 0.0))
    weights = np.stack([np.sin((1.0 - t) * angle), np.sin(t * angle)]) / np.sin(angle)
    straight = np.array([[1.0 - t], [t]])
    return np.where(np.abs(cosine) < 1.0, weights, straight)


@record(frozen=True)
class Nuslerp(ByAngles):
    """Interpolates along the arc between two models.

    t: toward the second model; it may lie outside 0 to 1, where weights have different signs. flatten: the tensor is one
    vector; else its vectors lie along torch's last axis (a matrix's rows, one for each output of a layer), or, by_column,
    along the first.
    """

    t: float = 0.5
    flatten: bool = True
    by_column: bool = False

    def along(self, shape: tuple[int, ...], transposed: bool) -> Rows | None:
        return None if self.flatten else rows_of(shape, transposed, self.by_column)

    def effective_weights(self, models: int) -> Sequence[float]:
        return [1.0 - self.t, self.t]

    def factors(self, found: Angles) -> Any:
        return arc(found, self.t)


def _nuslerp(weight: tuple[float, ...], nuslerp_flatten: bool, nuslerp_row_wise: bool) -> ResolvedMethod:
    total = sum(weight)
    t = 0.5 if abs(total) < 1e-6 else weight[1] / total  # as mergekit
    return ResolvedMethod(None, Nuslerp(t, nuslerp_flatten, nuslerp_row_wise and not nuslerp_flatten))


METHODS = (
    Method(
        "nuslerp",
        _nuslerp,
        (
            WEIGHT,
            Parameter("nuslerp_flatten", bool, True, about="the tensor is one vector"),
            Parameter("nuslerp_row_wise", bool, False, about="unflattened: vectors along torch's first axis, not its last"),
        ),
        about="two models, or their task vectors, along the arc, by weights",
        about_cn="两个模型或其任务向量，按权重沿圆弧插值",
        source="mergekit",
        example={"weight": 1.0},
        least=2,
        most=2,
        mergekit=True,
        place=12,
    ),
)
