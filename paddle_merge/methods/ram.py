"""RAM, reinforced agent merging (arXiv 2601.13572): an element that one model alone has changed is taken from it; one that
several have changed is the mean of theirs. A model has changed an element by more than epsilon, an absolute number: models
of bfloat16 whose base is below 0.001 change by less.

RAM+ raises what a model alone has changed by 1 + r min(shared / alone, alpha), counts of its changed elements. The authors
count in the whole model; as in mergekit, whose name "tensor-local" says so, counts are those of a tensor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backends.backend import Backend
from ..backends.budget import MemoryBudget
from ..backends.formula import formula
from .shared.base import Tensor, total
from .shared.method import Method, Parameter, ResolvedMethod


@formula(kernel="mergers.ram")
def ram(xp: Any, x: Any, epsilon: Any, factors: Any) -> Any:
    """x: a row (n,) per model, factors (models,) -> (n,): where one |x_k| > epsilon, factor_k x_k; where several, their
    mean; where none, 0 (NaN, Inf stay visible)."""
    active = [(xp.abs(row) > epsilon).astype(row.dtype) for row in x]
    changed = [row * one for row, one in zip(x, active, strict=True)]
    count = total(active)
    alone = (count < 1.5).astype(count.dtype)
    mean = xp.divide(total(changed), count + (count < 0.5).astype(count.dtype))
    return mean * (1 - alone) + total(row * factor for row, factor in zip(changed, factors, strict=True)) * alone


@dataclass(frozen=True)
class Ram:
    """epsilon: smaller changes are none. r, alpha: as above; r 0: what one model alone has changed stays as it is."""

    epsilon: float = 1e-5
    r: float = 0.0
    alpha: float = 0.2

    @property
    def measures(self) -> bool:
        return self.r != 0.0

    def problems(self, models: int) -> list[str]:
        return []

    def effective_weights(self, models: int) -> Sequence[float]:
        return [1.0] * models

    def memory(self, models: int, size: int, itemsize: int, budget: MemoryBudget) -> int:
        return 0

    def prepare(self, tensor: Tensor, backend: Backend) -> Any:
        epsilon, factors = backend.scalar(self.epsilon), [1.0] * tensor.models
        if self.measures:
            counts = np.zeros((tensor.models, 2), np.int64)
            for _, x in tensor.sparsified():
                backend.count_active(x, epsilon, counts)
            factors = [self._factor(int(alone), int(shared)) for alone, shared in counts]
        return epsilon, backend.array(factors)

    def _factor(self, alone: int, shared: int) -> float:
        """Of a model that is never alone no element needs it."""
        return 1.0 + self.r * min(shared / max(alone, 1), self.alpha)

    def apply(self, x: Any, start: int, state: Any, backend: Backend) -> Any:
        return backend.apply(ram, x, *state)


def _ram(epsilon: float, r: float = 0.0, alpha: float = 0.2) -> ResolvedMethod:
    if not 0.0 <= epsilon < math.inf:
        raise ValueError(f"parameter 'epsilon' {epsilon:g} must not be negative: smaller changes are none")
    if not (math.isfinite(r) and math.isfinite(alpha)):
        raise ValueError(f"parameters 'r' {r:g} and 'alpha' {alpha:g} must be numbers")
    return ResolvedMethod(None, Ram(epsilon, r, alpha))


_EPSILON = Parameter("epsilon", float, 1e-5, about="smaller changes are none")
METHODS = (
    Method("ram", _ram, (_EPSILON,), base="required", source="arXiv 2601.13572"),
    Method(
        "ramplus_tl",
        _ram,
        (
            Parameter("r", float, 0.1, about="how much what one model alone has changed is raised"),
            Parameter("alpha", float, 0.2, about="the largest ratio of shared to lone changes that counts"),
            _EPSILON,
        ),
        base="required",
        source="arXiv 2601.13572",
    ),
)
