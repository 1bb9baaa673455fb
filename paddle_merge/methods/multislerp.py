"""Multi-SLERP (mergekit): the weighted mean of the models' directions, times the weighted mean of their norms; with a base
model, of task vectors.

mergekit then takes a step in the tangent space at the mean direction u, along sum_k w_k (u_k - <u_k, u> u). By the
definition of u that sum is zero, so only the factor cos(eps) is left of the step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..records import record
from .shared.angles import Angles, ByAngles
from .shared.method import WEIGHT, Method, Parameter, ResolvedMethod
from .shared.problems import Problem, listed

_ROUNDING = 1e-7  # of lengths: the root of that of their squares


def cancelled(cosines: Any, weights: Any, eps: float) -> bool:
    """Tell whether the weighted sum of unit vectors is shorter than eps, or is zero within rounding errors."""
    length = math.sqrt(max(0.0, float(weights @ cosines @ weights)))
    return length < eps or length <= _ROUNDING * float(np.abs(weights).sum())


def barycentre(norms: Any, cosines: Any, weights: Any, eps: float) -> Any:
    """Return the models' factors, (models,). norms, weights: (models,). cosines: (models, models).

    Where the weighted directions cancel, to a length below eps, there is no mean direction: then the factors are the weights
    (mergekit: so for two models, and an error for more).
    """
    if not np.isfinite(norms).all():
        return weights
    lengths = norms / np.where(norms > 0, norms + eps, 1.0)  # of the unit vectors, a little less than 1
    shares = weights * lengths
    length = math.sqrt(max(0.0, float(shares @ cosines @ shares)))
    if cancelled(cosines, weights, eps) or length == 0.0:
        return weights
    inverse = np.divide(1.0, norms + eps, out=np.zeros_like(norms), where=norms > 0)
    return weights * inverse * (math.cos(eps) * float(weights @ norms) / length)


@record(frozen=True)
class Multislerp(ByAngles):
    """Takes the mean direction and the mean norm.

    weights: one per model, used as they are. eps: added to norms; a mean direction shorter than it is none.
    """

    weights: tuple[float, ...] = ()
    eps: float = 1e-8

    def effective_weights(self, models: int) -> Sequence[float]:
        return self.weights

    def factors(self, found: Angles) -> Any:
        if len(self.weights) == 1:  # the model as it is, as in mergekit
            return np.ones((1, 1))
        return barycentre(found.norms[:, 0], found.cosines[..., 0], np.array(self.weights), self.eps)[:, None]


def _multislerp(weight: tuple[float, ...], normalize_weights: bool, eps: float) -> ResolvedMethod:
    if normalize_weights and len(weight) > 1:
        weight = tuple(one / sum(weight) for one in weight)
    return ResolvedMethod(None, Multislerp(weight if len(weight) > 1 else (1.0,), eps))


def _problems(weight: tuple[float, ...], normalize_weights: bool, eps: float) -> list[Problem]:
    if not 0.0 <= eps < math.inf:
        return [Problem("eps", f"{eps:g} must not be negative")]
    if normalize_weights and len(weight) > 1 and abs(sum(weight)) <= 1e-9 * sum(map(abs, weight)):
        sentence = "sums to zero, so it can't be normalised; {normalize_weights:false}"
        return [Problem("weight", f"{listed(weight)} {sentence}")]
    return []


METHODS = (
    Method(
        "multislerp",
        _multislerp,
        (
            WEIGHT,
            Parameter("normalize_weights", bool, True, about="divide by the sum of weights"),
            Parameter("eps", float, 1e-8, about="added to norms; shorter mean directions are none"),
        ),
        about="several models, or their task vectors, by their mean direction",
        about_cn="多个模型或其任务向量，取平均方向",
        source="Goddard, multi-slerp",
        example={"weight": 1.0},
        problems=_problems,
        mergekit=True,
        place=13,
    ),
)
