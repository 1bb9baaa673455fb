"""RESTA: give a fine-tuned model back the safety that fine-tuning cost it (Bhardwaj et al. 2024, Language Models are Homer
Simpson!): fine-tuned + gamma (aligned - unaligned).

The base model is the aligned one, which was fine-tuned, and which a short training on harmful answers made the unaligned one
of; so this is base + delta_fine-tuned - gamma delta_unaligned. gamma is 1 in the paper.

With DARE (the paper's variant): drop_rate is the probability with which an element of a model's change is dropped; others
are divided by 1 - drop_rate. Each model has its own: the second one's thins the safety vector.
"""

from __future__ import annotations

import math

from .dare import Bernoulli
from .linear import Linear
from .shared.method import Method, Parameter, ResolvedMethod
from .shared.problems import Problem, listed
from .shared.sparsify import KeepAndRescale, Rescale


def _resta(gamma: float, drop_rate: tuple[float, ...]) -> ResolvedMethod:
    dare = None
    if max(drop_rate) > 0.0:
        dare = KeepAndRescale("dare", Bernoulli(tuple(1.0 - rate for rate in drop_rate)), Rescale.PROBABILITY)
    return ResolvedMethod(dare, Linear((1.0, -gamma), normalize=False))


def _problems(gamma: float, drop_rate: tuple[float, ...]) -> list[Problem]:
    found = []
    if not 0.0 <= gamma < math.inf:
        found.append(Problem("gamma", f"{gamma:g} must not be negative: it would take safety away"))
    if not all(0.0 <= rate < 1.0 for rate in drop_rate):
        found.append(Problem("drop_rate", f"{listed(drop_rate)} is the share of elements to drop: from 0 to below 1"))
    return found


METHODS = (
    Method(
        "resta",
        _resta,
        (
            Parameter("gamma", float, 1.0, about="factor on the safety vector"),
            Parameter("drop_rate", float, 0.0, each=True, about="share of a model's change to drop at random"),
        ),
        about="fine-tuning made an aligned model less safe",
        about_cn="微调降低了对齐模型的安全性",
        source="Bhardwaj et al. 2024, RESTA",
        paper="https://arxiv.org/abs/2402.11746",
        problems=_problems,
        base="required",
        least=2,
        most=2,
        base_role="the aligned model",
        roles=("the model fine-tuned from it", "the unaligned model"),
        place=27,
    ),
)
