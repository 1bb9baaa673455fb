"""Rewarded soup: the average of models that were each trained on a reward of their own, from one model (Ramé et al. 2023,
Rewarded soups): sum_k lambda_k theta_k, with lambda_k >= 0 and sum_k lambda_k = 1.

The weights say which reward matters how much, and each choice is a point of the front between the rewards: a sweep with
`{simplex: N}` in place of each weight scores a lattice of them. This is `linear`, but for weights that aren't on the
simplex, which are refused here.
"""

from __future__ import annotations

from .linear import Linear
from .shared.method import Method, Parameter, ResolvedMethod
from .shared.problems import Problem, listed

_ROUNDING = 1e-3  # how far from 1 the sum may be, as of 0.3333 three times; it is divided by


def _rewarded_soup(weight: tuple[float | None, ...]) -> ResolvedMethod:
    return ResolvedMethod(None, Linear(tuple(1.0 if one is None else one for one in weight)))


def _problems(weight: tuple[float | None, ...]) -> list[Problem]:
    given = [one for one in weight if one is not None]
    if not given:
        return []
    if len(given) < len(weight):
        return [Problem("weight", f"{listed(given)}: give every model one, or none of them")]
    if min(given) < 0.0:
        return [Problem("weight", f"{listed(given)} must not be negative; task_arithmetic takes negative ones")]
    if not abs(sum(given) - 1.0) <= _ROUNDING:
        sentence = "must add up to 1; left out, all are equal; linear divides by their sum"
        return [Problem("weight", f"{listed(given)} (sum {sum(given):g}) {sentence}")]
    return []


METHODS = (
    Method(
        "rewarded_soup",
        _rewarded_soup,
        (
            Parameter(
                "weight", float, None, each=True, about="how much a model's reward matters; all are equal unless given"
            ),
        ),
        about="models trained on different rewards, by how much each reward matters",
        about_cn="由不同奖励训练的模型，按各奖励的重要程度合并",
        source="Ramé et al. 2023, rewarded soups",
        paper="https://arxiv.org/abs/2306.04488",
        problems=_problems,
        least=2,
        place=29,
    ),
)
