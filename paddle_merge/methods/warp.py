"""WARP's merges: the policies of several RL runs from one model, along the arc between their task vectors, then back toward
that model (Ramé et al. 2024, WARP, sections 3.2 and 3.3, and appendix B.3).

    SLERP   s_1 = delta_1;  s_m = sin((1 - 1/m) angle) / sin(angle) s_(m-1) + sin(1/m angle) / sin(angle) delta_m
    LITI    base + eta s_M

The angle is that between s_(m-1) and delta_m; vectors that are parallel, or zero, are interpolated linearly. With more than
two models the result depends a little on their order. eta is 0.3 in the paper, where the result is the next round's start;
the paper's last result are those for all eta from 0 to 1. The paper takes the angles layer by layer, here it is tensor by
tensor. Its third part, an average over training as the anchor of RL, belongs to the training.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..records import record
from .shared.angles import SAME, Angles, ByAngles
from .shared.method import Method, Parameter, ResolvedMethod
from .shared.problems import Problem

_ROUNDING = 1e-7  # of lengths: the root of that of their squares


def along_arcs(norms: Any, cosines: Any) -> Any:
    """Return the models' factors, (models,) float64: SLERP of one after the other with what the ones before gave.

    norms: (models,) and finite. cosines: (models, models). Both float64.
    """
    models, largest = len(norms), float(norms.max())
    factors = np.zeros(models)
    factors[0] = 1.0
    lengths = norms / largest if largest > 0 else norms
    dots = cosines * lengths * lengths[:, None]
    for m in range(1, models):
        t = 1.0 / (m + 1)
        length = math.sqrt(max(0.0, float(factors @ dots @ factors)))
        parallel = length <= _ROUNDING * float(np.abs(factors) @ lengths) or lengths[m] == 0.0
        cosine = 1.0 if parallel else float(factors @ dots[:, m]) / (length * float(lengths[m]))
        if abs(cosine) >= 1.0 - SAME:
            before, its = 1.0 - t, t
        else:
            angle = math.acos(cosine)
            before, its = math.sin((1.0 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)
        factors *= before
        factors[m] = its
    return factors


@record(frozen=True)
class Warp(ByAngles):
    """Interpolates along the arcs between task vectors, all counting the same."""

    def factors(self, found: Angles) -> Any:
        models = len(found.norms)
        if not found.known.all():
            return np.full((models, 1), 1.0 / models)
        return along_arcs(found.norms[:, 0], found.cosines[..., 0])[:, None]


def _warp(eta: float) -> ResolvedMethod:
    return ResolvedMethod(None, Warp(), eta)


def _problems(eta: float) -> list[Problem]:
    if not 0.0 <= eta < math.inf:
        return [Problem("eta", f"{eta:g} must not be negative: 0 is the base model, 1 the merged policies")]
    return []


METHODS = (
    Method(
        "warp",
        _warp,
        (Parameter("eta", float, 0.3, about="0: the base model, 1: the merged policies"),),
        about="policies of several RL runs from one model, traded off against what that model still knew",
        about_cn="合并同一模型的多次强化学习结果，并在奖励与原有知识之间权衡",
        source="Ramé et al. 2024, WARP",
        paper="https://arxiv.org/abs/2406.16768",
        problems=_problems,
        base="required",
        least=2,
        base_role="the model that the RL runs began with",
        place=28,
    ),
)
