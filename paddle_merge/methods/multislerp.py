"""Multi-SLERP (mergekit): the weighted mean of the models' directions, times the weighted mean of their norms; of task
vectors, with a base model.

mergekit then takes a step in the tangent space at the mean direction u, along sum_k w_k (u_k - <u_k, u> u). By what u is
that sum is zero, so the step only leaves the factor cos(eps).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .shared.angles import Angles, ByAngles
from .shared.method import Method, Parameter, ResolvedMethod

_ROUNDING = 1e-7  # of lengths: the root of that of their squares


def cancelled(cosines: Any, weights: Any, eps: float) -> bool:
    """Whether the weighted sum of unit vectors is shorter than eps, or than rounding may leave of none."""
    length = math.sqrt(max(0.0, float(weights @ cosines @ weights)))
    return length < eps or length <= _ROUNDING * float(np.abs(weights).sum())


def barycentre(norms: Any, cosines: Any, weights: Any, eps: float) -> Any:
    """norms (models,), cosines (models, models), weights (models,) -> (models,) factors.

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


@dataclass(frozen=True)
class Multislerp(ByAngles):
    """weights: one per model, as they are. eps: added to norms, and the length below which a mean direction is none."""

    weights: tuple[float, ...] = ()
    eps: float = 1e-8

    def effective_weights(self, models: int) -> Sequence[float]:
        return self.weights

    def factors(self, found: Angles) -> Any:
        if len(self.weights) == 1:  # the model as it is, as in mergekit
            return np.ones((1, 1))
        return barycentre(found.norms[:, 0], found.cosines[..., 0], np.array(self.weights), self.eps)[:, None]


def _multislerp(weight: tuple[float, ...], normalize_weights: bool, eps: float) -> ResolvedMethod:
    if not 0.0 <= eps < math.inf:
        raise ValueError(f"parameter 'eps' {eps:g} must not be negative")
    if normalize_weights and len(weight) > 1:
        if abs(sum(weight)) <= 1e-9 * sum(map(abs, weight)):
            shown = " ".join(f"{one:g}" for one in weight)
            raise ValueError(
                f"parameter 'weight' {shown} sums to zero, so it can't be normalised; set normalize_weights: false"
            )
        weight = tuple(one / sum(weight) for one in weight)
    return ResolvedMethod(None, Multislerp(weight if len(weight) > 1 else (1.0,), eps))


METHODS = (
    Method(
        "multislerp",
        _multislerp,
        (
            Parameter("weight", float, each=True, about="how much a model counts"),
            Parameter("normalize_weights", bool, True, about="divide by the sum of weights"),
            Parameter("eps", float, 1e-8, about="added to norms; shorter mean directions are none"),
        ),
        source="Goddard, multi-slerp",
    ),
)
