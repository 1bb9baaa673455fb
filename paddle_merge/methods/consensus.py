"""Consensus task arithmetic: keep the elements of the sum of task vectors that matter to several models (Wang et al. 2024,
Localizing Task Information for Improved Model Merging and Compression, sections 4 and 5).

An element matters to model k if |delta_k| > lambda_mask * |sum of the others' deltas|: the TALL mask, eq. 5. Elements that
matter to none ("catastrophic") or to one only ("selfish") are dropped. The paper chooses lambda_mask for every model from
0.2, 0.3 ... 0.6 by validation, and lambda too; a model's own lambda_mask is set beside the model. Weights, which the paper
doesn't have, multiply the task vectors before anything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..backends.backend import Backend
from ..backends.formula import formula
from ..records import record
from .shared.base import Merger, Tensor, total
from .shared.method import LAMBDA, WEIGHT_OF_ONE, Method, Parameter, ResolvedMethod
from .shared.problems import Problem, listed


@formula(kernel="mergers.consensus")
def consensus(xp: Any, x: Any, weights: Any, lambdas: Any, least: int) -> Any:
    """Return the weighted sum where it matters to at least `least` models, else 0, (n,); a NaN stays NaN.

    x: a row (n,) per model. weights, lambdas: (models,).
    """
    rows = [weight * row for weight, row in zip(weights, x, strict=True)]
    merged = total(rows)
    matters = (xp.abs(row) > xp.abs(merged - row) * factor for row, factor in zip(rows, lambdas, strict=True))
    return merged * (total(mask.astype(merged.dtype) for mask in matters) >= least).astype(merged.dtype)


@record(frozen=True)
class Consensus(Merger):
    """Adds up what matters to several models.

    weights, lambda_mask: one per model. k: how many models an element must matter to.
    """

    weights: tuple[float, ...]
    lambda_mask: tuple[float, ...]
    k: int = 2

    def effective_weights(self, models: int) -> Sequence[float]:
        return self.weights

    def prepare(self, tensor: Tensor, backend: Backend) -> Any:
        return backend.array(self.weights), backend.array(self.lambda_mask)

    def apply(self, x: Any, start: int, state: Any, backend: Backend) -> Any:
        return backend.apply(consensus, x, *state, self.k)


def _consensus(weight: tuple[float, ...], lambda_mask: tuple[float, ...], k: int, **others: float) -> ResolvedMethod:
    return ResolvedMethod(None, Consensus(weight, lambda_mask, k), others["lambda"])


def _problems(weight: tuple[float, ...], lambda_mask: tuple[float, ...], k: int, **others: float) -> list[Problem]:
    if not 0 <= k <= len(weight):
        sentence = f"{k} is how many models an element must matter to: from 0 to the {len(weight)} that are merged"
        return [Problem("k", sentence)]
    if not all(one >= 0 for one in lambda_mask):
        return [Problem("lambda_mask", f"{listed(lambda_mask)} must not be negative")]
    return []


METHODS = (
    Method(
        "consensus_ta",
        _consensus,
        (
            WEIGHT_OF_ONE,
            Parameter("lambda_mask", float, 0.4, each=True, about="how much larger than others' changes its own must be"),
            Parameter("k", int, 2, about="how many models an element must matter to"),
            LAMBDA,
        ),
        about="only changes that several models need",
        about_cn="只保留多个模型都需要的改动",
        source="Wang et al. 2024, TALL masks",
        paper="https://arxiv.org/abs/2405.07813",
        example={"weight": 1.0},
        problems=_problems,
        base="required",
        place=23,
    ),
)
