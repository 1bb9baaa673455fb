"""Linear: the weighted sum of the models, or of their task vectors.

Without a base model and normalised it is a model soup (Wortsman et al. 2022); with a base model and not normalised it is
task arithmetic (Ilharco et al. 2023, eq. 1): base + scale * sum_k w_k delta_k.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..backends.backend import Backend
from ..backends.budget import MemoryBudget
from .shared.base import Tensor, linear


@dataclass(frozen=True)
class Linear:
    """weights: one per model. normalize: divide by their sum."""

    weights: tuple[float, ...]
    normalize: bool = True

    measures = False

    def problems(self, models: int) -> list[str]:
        return normalize_problems(self.weights) if self.normalize else []

    def effective_weights(self, models: int) -> Sequence[float]:
        total = sum(self.weights) if self.normalize else 1.0
        return [weight / total for weight in self.weights]

    def memory(self, models: int, size: int, itemsize: int, budget: MemoryBudget) -> int:
        return 0

    def prepare(self, tensor: Tensor, backend: Backend) -> Any:
        return backend.array(self.effective_weights(tensor.models))

    def apply(self, x: Any, start: int, state: Any, backend: Backend) -> Any:
        return backend.apply(linear, x, state)


def normalize_problems(weights: Sequence[float]) -> list[str]:
    """Why these weights can't be divided by their sum: it is zero, or it is negative and would flip every sign."""
    total = sum(weights)
    shown = " ".join(f"{weight:g}" for weight in weights)
    if abs(total) <= 1e-9 * sum(map(abs, weights)):
        return [
            f"--weight_list {shown} sums to zero, so it can't be normalised; pass --no_normalize to use the weights as"
            " they are"
        ]
    if total < 0:
        return [
            f"--weight_list {shown} sums to {total:g}; dividing by it would flip every sign; pass --no_normalize to use"
            " the weights as they are"
        ]
    return []
