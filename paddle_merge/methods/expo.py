"""ExPO: extrapolate from an SFT model through the model that alignment made of it (Zheng et al. 2024, Model Extrapolation
Expedites Alignment): aligned + alpha (aligned - sft).

The base model is the SFT model, so this is base + (1 + alpha) delta. The authors find 0.3 or 0.5 usually good, and more
after a training that was stopped early (25 after 5 % of it). `python -m paddle_merge sweep` tries values.
"""

from __future__ import annotations

import math

from .linear import Linear
from .shared.method import Method, Parameter, ResolvedMethod
from .shared.problems import Problem


def _expo(alpha: float) -> ResolvedMethod:
    return ResolvedMethod(None, Linear((1.0 + alpha,), normalize=False))


def _problems(alpha: float) -> list[Problem]:
    if not 0.0 <= alpha < math.inf:
        sentence = "is how far to go beyond the aligned model: 0 or more; task_arithmetic stays between the two models"
        return [Problem("alpha", f"{alpha:g} {sentence}")]
    return []


METHODS = (
    Method(
        "expo",
        _expo,
        (Parameter("alpha", float, 0.3, about="how far beyond the aligned model, in lengths of what alignment changed"),),
        about="an aligned model is taken further in the direction of its alignment",
        about_cn="沿对齐训练的方向，从对齐后的模型继续外推",
        source="Zheng et al. 2024, ExPO",
        paper="https://arxiv.org/abs/2404.16792",
        problems=_problems,
        base="required",
        most=1,
        base_role="the SFT model that alignment began with",
        roles=("the aligned model",),
        place=25,
    ),
)
