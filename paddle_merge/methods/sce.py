"""SCE: select the elements in which models differ most, calculate the models' weights from what they changed there, erase
minority signs (Wan et al. 2024, FuseChat, section 3.3).

Weights are a model's share of the sum of squares, over the selected elements of the tensor. mergekit falls back to equal
weights where the mean squares sum to less than 1e-6, which those of language models always do; here only where they are all
zero, so that merges differ from mergekit's: this is the paper's. Equal variances at the threshold are all kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..backends.backend import Backend
from ..backends.budget import MemoryBudget
from ..backends.formula import formula
from ..records import record
from .shared import selection
from .shared.base import Merger, Tensor, total
from .shared.derived import Derived
from .shared.method import Method, Parameter, ResolvedMethod
from .shared.problems import Problem
from .ties import elect

# How squares are added up, in the order of attempts: the factor on elements, and whether NaN and Inf are left out. Squares
# of float64 may leave its range though their ratios don't. Tensors of zeros, NaN and Inf, which take all attempts, are rare.
_TRIES = ((1.0, False), (1.0, True), (2.0**-530, True), (2.0**530, True))


@formula(kernel="mergers.variance")
def variance(xp: Any, x: Any) -> Any:
    """Return the variance of each element over the models, times models squared, (n,); for one model 0.

    x: a row (n,) per model. It is the sum of squared differences, which is exact where elements have few bits, so that equal
    variances come out equal.
    """
    if len(x) == 1:
        return x[0] * 0
    return total((x[j] - x[k]) * (x[j] - x[k]) for j in range(1, len(x)) for k in range(j))


def selected(variances: Any, threshold: Any) -> Any:
    """Return 1 where the variance (n,) is at least the threshold (1,), else 0, (n,)."""
    return (variances.astype(threshold.dtype) >= threshold).astype(variances.dtype)


@formula(kernel="mergers.sce")
def sce(xp: Any, x: Any, weights: Any, threshold: Any) -> Any:
    """Return the weighted mean of the models that agree with the sign of their sum, (n,).

    x: a row (n,) per model. weights: (models,). threshold: as in `selected`; None selects all.
    """
    if threshold is not None:
        mask = selected(variance(xp, x), threshold)
        x = [row * mask for row in x]  # NaN stays visible
    sign = elect(xp, x, False, 1.0)
    agree = [(row * sign > 0).astype(row.dtype) * weight for row, weight in zip(x, weights, strict=True)]
    divisor = total(agree)
    merged = total(row * mask for row, mask in zip(x, agree, strict=True)) + total(x) * 0
    return xp.divide(merged, divisor + (1 - (divisor > 0).astype(divisor.dtype)))  # where none agrees, by 1


def finite(xp: Any, x: Any) -> Any:
    """Return x (n,) with 0 in place of NaN and Inf."""
    return xp.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0)


@record(frozen=True)
class Sce(Merger):
    """Selects elements, weighs models by their squares there, and erases minority signs.

    select_topk: the share to select of the elements in which models differ.
    """

    select_topk: float = 1.0

    @property
    def measures(self) -> bool:
        return True

    def effective_weights(self, models: int) -> Sequence[float]:
        return [1.0 / models] * models  # of a tensor: they follow from its elements

    def memory(self, models: int, size: int, itemsize: int, budget: MemoryBudget) -> int:
        samples = (models + 2) * selection.sampled(size) * itemsize  # while their variance is taken
        return selection.memory(models, size, itemsize, budget) + samples if self.select_topk < 1.0 else 0

    def prepare(self, tensor: Tensor, backend: Backend) -> Any:
        threshold = self._threshold(tensor, backend) if self.select_topk < 1.0 else None
        squares = np.zeros(tensor.models)
        for scale, bounded in _TRIES:
            squares = self._squares(tensor, backend, threshold, scale, bounded)
            if 0 < squares.sum() < math.inf:
                break
        whole = float(squares.sum())
        weights = squares / whole if 0 < whole < math.inf else np.full(tensor.models, 1.0 / tensor.models)
        return backend.array(weights.tolist()), threshold

    def _threshold(self, tensor: Tensor, backend: Backend) -> Any:
        """Return the smallest variance that is selected, (1,); Inf if none is."""
        read = differ = 0  # elements that were read, and those of them in which models differ

        def block(start: int, x: Any) -> Any:
            nonlocal read, differ
            row = backend.apply(variance, x)
            if start == read:  # in the first pass
                read += len(row)
                differ += int(np.count_nonzero(backend.fetch(row)()))
            return row

        def count() -> int:
            return int(differ * self.select_topk)

        value, most = np.inf, int(tensor.size * self.select_topk)
        if most > 0:
            # The guess is that models differ everywhere. Usually they differ nearly everywhere.
            variances = Derived(tensor, block, lambda x: variance(np, x))
            value = selection.select_late(variances, backend, tensor.size - most, lambda: tensor.size - max(1, count()))
        threshold = value if count() > 0 else np.inf
        return backend.constant(np.array([threshold], np.float32 if tensor.narrow else np.float64))

    @staticmethod
    def _squares(tensor: Tensor, backend: Backend, threshold: Any, scale: float, bounded: bool = False) -> Any:
        """Return the sum of squares of the selected elements of each model, times scale squared, (models,) float64.

        bounded: leave out NaN and Inf, which would decide for the whole tensor.
        """
        squares = np.zeros((tensor.models, 1, 1))
        for _, x in tensor.deltas():
            rows, mask = list(x), None
            if threshold is not None:
                rows[0] = backend.stacked(rows[:1])[0]  # a copy: the variance may be written in the place of the first row
                mask = selected(backend.apply(variance, x), threshold)
            if bounded:
                rows = [backend.apply(finite, row) for row in rows]
            if scale != 1.0:
                rows = [row * scale for row in rows]
            if mask is not None:
                rows = [row * mask for row in rows]
            for row, square in zip(rows, squares, strict=True):
                backend.add_gram(row[None], square)
        return squares.reshape(-1)

    def apply(self, x: Any, start: int, state: Any, backend: Backend) -> Any:
        return backend.apply(sce, x, *state)


def _sce(select_topk: float) -> ResolvedMethod:
    return ResolvedMethod(None, Sce(select_topk))


def _problems(select_topk: float) -> list[Problem]:
    if not 0.0 <= select_topk <= 1.0:
        return [Problem("select_topk", f"{select_topk:g} is the share of elements to select: from 0 to 1")]
    return []


METHODS = (
    Method(
        "sce",
        _sce,
        (Parameter("select_topk", float, 1.0, about="share of elements to select, those in which models differ most"),),
        about="only where models differ most, each by the size of its changes there",
        about_cn="只在模型差异最大之处，按各自改动的大小加权",
        source="Wan et al. 2024, FuseChat",
        paper="https://arxiv.org/abs/2408.07990",
        example={"select_topk": 0.5},
        problems=_problems,
        base="required",
        mergekit=True,
        place=19,
    ),
)
