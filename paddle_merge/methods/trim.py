"""Trim, TIES' first step: keep the elements of largest magnitude (Yadav et al. 2023, section 3).

The rule is PaddleNLP's: keep |x| >= quantile(|x|, 1 - density) over the whole tensor (the paper: over the whole model).
Rescaling, PaddleNLP's too (the paper has none), restores the L1 norm; it makes the sum of several trimmed task vectors
larger than the paper's, so where merges come out too strong, turn it off.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backends.backend import Backend
from ..backends.budget import MemoryBudget
from ..backends.formula import formula
from .dare import density_problems
from .shared import selection
from .shared.base import Tensor

_SMALL = 2.0**-64


@formula(kernel="sparsifiers.trim")
def trim(xp: Any, x: Any, threshold: Any, factor: Any) -> Any:
    """x (n,) -> (n,): x * factor where |x| >= threshold, else 0 (NaN stays visible).

    threshold: (1,) in the dtype in which magnitudes are compared.
    """
    return x * ((xp.abs(x).astype(threshold.dtype) >= threshold).astype(x.dtype) * factor)


class _Smaller:
    """A tensor's numbers, all times a power of two."""

    def __init__(self, tensor: Tensor):
        self.name, self.shape, self.size, self.models = tensor.name, tensor.shape, tensor.size, tensor.models
        self.seed, self.transposed, self.narrow, self._tensor = tensor.seed, tensor.transposed, tensor.narrow, tensor

    def deltas(self) -> Iterator[tuple[int, Any]]:
        for start, x in self._tensor.deltas():
            yield start, [row * _SMALL for row in x]

    sparsified = deltas

    def sample(self, count: int) -> Any:
        return self._tensor.sample(count) * _SMALL


@dataclass(frozen=True)
class Trim:
    """density: the fraction to keep, in (0, 1]. rescale: multiply by sum |x| / sum |kept|."""

    density: float = 0.7
    rescale: bool = True

    random = False

    @property
    def measures(self) -> bool:
        return self.density < 1.0

    def problems(self) -> list[str]:
        return density_problems(self.density)

    def memory(self, models: int, size: int, itemsize: int, budget: MemoryBudget) -> int:
        return selection.memory(models, size, itemsize, budget) if self.measures else 0

    def prepare(self, tensor: Tensor, backend: Backend) -> Sequence[Any]:
        if not self.measures:
            return [None] * tensor.models
        cuts = selection.select_quantile(tensor, backend, 1.0 - self.density)
        sums = cuts
        if self.rescale and not tensor.narrow and not all(math.isfinite(cut.total) for cut in cuts):
            sums = selection.select_quantile(
                _Smaller(tensor), backend, 1.0 - self.density
            )  # the sums leave float64, not their ratio
        states = []
        for cut, parts in zip(cuts, sums, strict=True):
            factor = parts.total / parts.kept if self.rescale and parts.kept > 0 else 1.0
            if not math.isfinite(factor):  # an Inf or NaN in the input must not spread over the whole tensor
                factor = 1.0
            states.append((backend.constant(np.array([cut.threshold])), backend.scalar(factor)))
        return states

    def apply(self, x: Any, start: int, state: Any, backend: Backend) -> Any:
        return x if state is None else backend.apply(trim, x, *state)
