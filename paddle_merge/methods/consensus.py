"""Consensus task arithmetic: of the sum of task vectors keep the elements that matter to several models (Wang et al. 2024,
Localizing Task Information for Improved Model Merging and Compression, sections 4 and 5).

An element matters to model k if |delta_k| > lambda_mask * |sum of the others' deltas|: the TALL mask, eq. 5. Elements that
matter to none ("catastrophic") or to one only ("selfish") are dropped. The paper chooses lambda_mask for every model from
0.2, 0.3 ... 0.6 by validation, and lambda too; a model's own lambda_mask is set beside the model. Weights, which the paper
doesn't have, multiply the task vectors before anything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..backends.backend import Backend
from ..backends.budget import MemoryBudget
from ..backends.formula import formula
from .shared.base import Tensor, total
from .shared.method import Method, Parameter, ResolvedMethod


@formula(kernel="mergers.consensus")
def consensus(xp: Any, x: Any, weights: Any, lambdas: Any, least: int) -> Any:
    """x: a row (n,) per model, weights and lambdas (models,) -> (n,): the weighted sum where it matters to at least so many
    models, else 0 (NaN stays visible)."""
    rows = [weight * row for weight, row in zip(weights, x, strict=True)]
    merged = total(rows)
    matters = (xp.abs(row) > xp.abs(merged - row) * factor for row, factor in zip(rows, lambdas, strict=True))
    return merged * (total(mask.astype(merged.dtype) for mask in matters) >= least).astype(merged.dtype)


@dataclass(frozen=True)
class Consensus:
    """weights and lambda_mask: one per model. k: how many models an element must matter to."""

    weights: tuple[float, ...]
    lambda_mask: tuple[float, ...]
    k: int = 2

    measures = False

    def problems(self, models: int) -> list[str]:
        return []

    def effective_weights(self, models: int) -> Sequence[float]:
        return self.weights

    def memory(self, models: int, size: int, itemsize: int, budget: MemoryBudget) -> int:
        return 0

    def prepare(self, tensor: Tensor, backend: Backend) -> Any:
        return backend.array(self.weights), backend.array(self.lambda_mask)

    def apply(self, x: Any, start: int, state: Any, backend: Backend) -> Any:
        return backend.apply(consensus, x, *state, self.k)


def _consensus(weight: tuple[float, ...], lambda_mask: tuple[float, ...], k: int, **others: float) -> ResolvedMethod:
    if not 0 <= k <= len(weight):
        raise ValueError(
            f"parameter 'k' {k} is how many models an element must matter to: from 0 to the {len(weight)} that are merged"
        )
    if not all(one >= 0 for one in lambda_mask):
        shown = " ".join(f"{one:g}" for one in lambda_mask)
        raise ValueError(f"parameter 'lambda_mask' {shown} must not be negative")
    return ResolvedMethod(None, Consensus(weight, lambda_mask, k), others["lambda"])


METHODS = (
    Method(
        "consensus_ta",
        _consensus,
        (
            Parameter("weight", float, 1.0, each=True, about="how much a model counts"),
            Parameter("lambda_mask", float, 0.4, each=True, about="how much larger than others' changes its own must be"),
            Parameter("k", int, 2, about="how many models an element must matter to"),
            Parameter("lambda", float, 1.0, about="factor on the merged task vector"),
        ),
        base="required",
        source="Wang et al. 2024, TALL masks",
    ),
)
