"""Trim, the first step of TIES: keep the elements of largest magnitude (Yadav et al. 2023, section 3).

PaddleNLP's rule (`Threshold`) keeps |x| >= quantile(|x|, 1 - density) over the whole tensor; the paper takes the quantile
over the whole model. mergekit's rule (`Largest`) keeps exactly int(density * n) elements. PaddleNLP rescales to the tensor's
L1 norm by default, mergekit on request, the paper never. Rescaling makes the sum of several trimmed task vectors larger than
the paper's.

Steps 2 and 3 of TIES are in ties.py; paddlenlp.py and mergekit.py say which rule goes with which method.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..backends.backend import Backend
from ..backends.budget import MemoryBudget
from ..backends.formula import formula
from ..backends.masks import Key
from ..records import record
from .shared import selection
from .shared.base import Tensor
from .shared.rank_masks import KeepRanks
from .shared.sparsify import Keep, Mask

_SMALL = 2.0**-64


@formula(kernel="sparsifiers.trim")
def trim(xp: Any, x: Any, threshold: Any, factor: Any) -> Any:
    """Return x * factor where |x| >= threshold, else 0, (n,); a NaN stays NaN.

    x: (n,). threshold: (1,) in the dtype in which magnitudes are compared. factor: a scalar.
    """
    return x * ((xp.abs(x).astype(threshold.dtype) >= threshold).astype(x.dtype) * factor)


@record(frozen=True)
class _Above:
    """Keeps |x| >= the quantile."""

    quantile: selection.Quantile
    threshold: Any
    factor: Any

    def apply(self, x: Any, start: int, backend: Backend) -> Any:
        return backend.apply(trim, x, self.threshold, self.factor)

    def scaled(self, factor: float, backend: Backend) -> _Above:
        return _Above(self.quantile, self.threshold, backend.scalar(factor))


class _Smaller:
    """A tensor's numbers, all multiplied by a small power of two, so that sums of them stay within float64."""

    def __init__(self, tensor: Tensor):
        self.name, self.shape, self.size, self.models = tensor.name, tensor.shape, tensor.size, tensor.models
        self.transposed, self.narrow, self._tensor = tensor.transposed, tensor.narrow, tensor

    def mask_key(self, model: int) -> Key:
        return self._tensor.mask_key(model)

    def deltas(self) -> Iterator[tuple[int, Any]]:
        for start, x in self._tensor.deltas():
            yield start, [row * _SMALL for row in x]

    sparsified = deltas

    def sample(self, count: int) -> Any:
        return self._tensor.sample(count) * _SMALL


@record(frozen=True)
class Threshold(Keep):
    """Keep |x| >= quantile(|x|, 1 - density) of the tensor, as PaddleNLP does. Of equally large elements all are kept.

    density: one number for all models.
    """

    @property
    def measures(self) -> bool:
        return self.density_of(0) < 1.0

    def memory(self, models: int, size: int, itemsize: int, budget: MemoryBudget) -> int:
        return selection.memory(models, size, itemsize, budget) if self.measures else 0

    def masks(self, tensor: Tensor, backend: Backend, divide: bool) -> Sequence[Mask | None]:
        if not self.measures:
            return [None] * tensor.models
        found = selection.select_quantile(tensor, backend, 1.0 - self.density_of(0))
        one = backend.scalar(1.0)
        return [_Above(quantile, backend.constant(np.array([quantile.threshold])), one) for quantile in found]

    def l1_factors(self, tensor: Tensor, backend: Backend, masks: Sequence[Mask | None]) -> Mapping[int, float]:
        """Return the factors as Keep does, from the sums that selecting the quantiles has added up already."""
        sums = [mask.quantile for mask in masks if isinstance(mask, _Above)]
        if not tensor.narrow and not all(math.isfinite(one.total) for one in sums):
            # The sums leave the range of float64; their ratio doesn't.
            sums = selection.select_quantile(_Smaller(tensor), backend, 1.0 - self.density_of(0))
        factors = (one.total / one.kept if one.kept > 0 else 1.0 for one in sums)
        # A NaN or Inf in the input must not spread over the whole tensor.
        return {model: factor if math.isfinite(factor) else 1.0 for model, factor in enumerate(factors)}


@record(frozen=True)
class Largest(KeepRanks):
    """Keep exactly int(density * n) elements, the largest, and at least one, as mergekit does.

    Of equally large elements at the cut, those of the lowest indices are kept.
    """

    descending = True
    cuts = 1

    def interval(self, model: int, size: int) -> tuple[int, int]:
        density = self.density_of(model)
        return size - max(1, int(density * size)) if density > 0 else size, size
