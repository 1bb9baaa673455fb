"""The Karcher mean (arXiv 2603.04972): the point on the sphere whose squared arcs to the models' directions have the least
sum, times the mean of their norms. Found by iteration: u <- exp_u(sum_k a_k log_u(u_k)), from the directions' mean on.

All points lie in the span of the models, so the iteration runs on their factors, and dot products are the Gram matrix's.
Arcs between models of one base are small, and float32's arccos has steps of 0.0003 there; here they are float64's.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..records import record
from .shared.angles import Angles, ByAngles
from .shared.method import Method, Parameter, ResolvedMethod
from .shared.problems import Problem


def direction(cosines: Any, shares: Any, max_iter: int, tol: float) -> Any:
    """Return the mean direction as a weighted sum of the models' directions: the weights, (models,).

    cosines: (models, models) between the directions. shares: (models,), which sum to 1. max_iter, tol: as in Karcher.
    """

    def length(factors: Any) -> float:
        return math.sqrt(max(0.0, float(factors @ cosines @ factors)))

    mean = np.array(shares)
    size = length(mean)
    mean = np.eye(len(shares))[0] if size < tol or size == 0.0 else mean / size
    for _ in range(max_iter):
        tangent = np.zeros_like(mean)
        for k, dot in enumerate(np.clip(cosines @ mean, -1.0, 1.0)):
            arc = math.acos(dot)
            if arc < tol or 1.0 - abs(dot) < 1e-12:  # the mean is there, or opposite, where all arcs are as long
                continue
            log = -dot * mean
            log[k] += 1.0
            tangent += shares[k] * (arc / math.sin(arc)) * log
        step = length(tangent)
        if step < tol or step == 0.0:
            break
        mean = math.cos(step) * mean + math.sin(step) * (tangent / step)
        size = length(mean)
        if size > tol:
            mean = mean / size
    return mean


def karcher(norms: Any, cosines: Any, max_iter: int, tol: float) -> Any:
    """Return the models' factors, (models,). norms: (models,). cosines: (models, models).

    As in mergekit, models of norms up to tol have no direction; where all are such, the result is zero.
    """
    count = len(norms)
    if count == 1 or not np.isfinite(norms).all():
        return np.full(count, 1.0 / count)
    factors, there = np.zeros(count), np.flatnonzero(norms > tol)
    if len(there):
        mean = direction(cosines[np.ix_(there, there)], np.full(len(there), 1.0 / len(there)), max_iter, tol)
        factors[there] = mean / norms[there] * (norms.sum() / count)
    return factors


@record(frozen=True)
class Karcher(ByAngles):
    """Takes the Karcher mean. max_iter: steps, at most. tol: a step, an arc or a norm below it counts as none."""

    max_iter: int = 10
    tol: float = 1e-5

    def factors(self, found: Angles) -> Any:
        return karcher(found.norms[:, 0], found.cosines[..., 0], self.max_iter, self.tol)[:, None]


def _karcher(max_iter: int, tol: float) -> ResolvedMethod:
    return ResolvedMethod(None, Karcher(max_iter, tol))


def _problems(max_iter: int, tol: float) -> list[Problem]:
    found = [Problem("max_iter", f"{max_iter} must not be negative")] if max_iter < 0 else []
    return found if 0.0 <= tol < math.inf else [*found, Problem("tol", f"{tol:g} must not be negative")]


METHODS = (
    Method(
        "karcher",
        _karcher,
        (
            Parameter("max_iter", int, 10, about="steps of the iteration, at most"),
            Parameter("tol", float, 1e-5, about="steps, arcs and norms below it count as none"),
        ),
        about="several models, by the exact mean of their directions",
        about_cn="多个模型，取其方向的精确平均",
        source="arXiv 2603.04972",
        paper="https://arxiv.org/abs/2603.04972",
        problems=_problems,
        base="model",
        mergekit=True,
        place=14,
    ),
)
