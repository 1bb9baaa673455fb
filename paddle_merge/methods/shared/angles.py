"""What methods of angles have in common: they need no more of a tensor than its models' dot products, and give a weighted
sum of the models. So a first pass adds up the Gram matrix, the weights follow from it in float64, and a second pass applies
them. Angles are those between whole tensors, or between the vectors that a tensor's lines are, each of which then has
weights of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...backends.backend import Backend
from ...backends.budget import MemoryBudget
from ...backends.formula import formula
from .base import Tensor, linear, total
from .rows import Rows

SAME = 1e-12  # cosines this near to 1 or -1 are that, but for the rounding of long sums
_SMALL = 2.0**-530  # brings float64's largest to where it can be squared
STEP = 1 << 10  # lines whose weights are computed together


@dataclass(frozen=True)
class Angles:
    """Of n lines. norms (models, n) and cosines (models, models, n) between them, float64; those with a vector of zeros
    are 0. Where a number is NaN or Inf, or a norm leaves float64, norms aren't finite and cosines are 0."""

    norms: Any
    cosines: Any

    @property
    def known(self) -> Any:
        """(n,) whether all norms are finite."""
        return np.isfinite(self.norms).all(0)


def angles(tensor: Tensor, backend: Backend, along: Rows | None = None) -> Iterator[Angles]:
    """Of each line, in order, up to STEP at a time; without lines of one, the whole tensor. Reads it once (float64 whose
    squares leave its range: twice)."""
    grams = _grams(tensor, backend, along, 1.0)
    factors = np.ones(grams.shape[1])
    if not tensor.narrow and not (good := np.isfinite(grams).all(0)).all():
        smaller = _grams(tensor, backend, along, _SMALL)
        np.copyto(grams, smaller, where=~good)
        factors[~good] = _SMALL
    for begin in range(0, grams.shape[1], STEP):
        yield _angles(grams[:, begin : begin + STEP], factors[begin : begin + STEP], tensor.models)


def _grams(tensor: Tensor, backend: Backend, along: Rows | None, factor: float) -> Any:
    """(pairs, n): dot products of all pairs of models (0 0, 1 0, 1 1, 2 0 ...), all elements times the factor."""
    pairs = np.tril_indices(tensor.models)
    gram = np.zeros((tensor.models, tensor.models))
    grams = np.zeros((len(pairs[0]), along.count if along else 1))
    for start, x in tensor.sparsified():
        rows = x if factor == 1.0 else backend.stacked([row * factor for row in x])
        if along:
            backend.add_row_grams(rows, start, along.across, along.width, grams)
        else:
            backend.add_gram(rows, gram)
    if not along:
        grams[:, 0] = gram[pairs]
    return grams


def _angles(grams: Any, factors: Any, models: int) -> Angles:
    pairs = np.tril_indices(models)
    with np.errstate(all="ignore"):
        norms = np.sqrt(grams[pairs[0] == pairs[1]])
        units = np.where((norms > 0) & np.isfinite(norms), norms, 1.0)
        cosines = np.empty((models, models, grams.shape[1]))
        for dots, j, k in zip(grams, *pairs, strict=True):
            cosine = dots / units[j] / units[k]
            cosine = np.where(np.abs(cosine) >= 1.0 - SAME, np.sign(cosine), cosine)
            cosines[j, k] = cosines[k, j] = np.where(np.isfinite(cosine), cosine, 0.0)
        return Angles(norms / factors, cosines)


@formula(kernel="mergers.linear_by_row")
def linear_by_row(xp: Any, x: Any, weights: Any, start: int, across: bool, width: int) -> Any:
    """x: a row (n,) per model, the elements from `start` on; weights (models, lines) -> (n,): sum_k w_k x_k, w_k that of the
    element's line."""
    element = xp.arange(start, start + len(x[0]))
    line = xp.remainder(element, width) if across else xp.floor_divide(element, width)
    return total(xp.take(weight, line) * row for weight, row in zip(weights, x, strict=True))


@dataclass(frozen=True)
class ByAngles:
    """What mergers that weigh models by their angles share. A subclass says how, and along which lines."""

    measures = True

    def factors(self, found: Angles) -> Any:
        """(models, n) float64: of each of n lines."""
        raise NotImplementedError

    def along(self, shape: tuple[int, ...], transposed: bool) -> Rows | None:
        """The lines that have weights of their own; None: the tensor is one vector."""
        return None

    def problems(self, models: int) -> list[str]:
        return []

    def effective_weights(self, models: int) -> Sequence[float]:
        return [1.0 / models] * models

    def memory(self, models: int, size: int, itemsize: int, budget: MemoryBudget) -> int:
        return 0

    def row_memory(self, models: int, shape: tuple[int, ...], transposed: bool, itemsize: int) -> int:
        """What `prepare` takes beside `memory`: of each line the dot products, and its weights."""
        along = self.along(shape, transposed)
        if along is None:
            return 0
        pairs = models * (models + 1) // 2
        grams = pairs * 8 if itemsize < 8 else pairs * 17  # once more, with factors
        return along.count * (grams + models * itemsize + 16) + min(STEP, along.count) * models * (models + 4) * 24

    def prepare(self, tensor: Tensor, backend: Backend) -> Any:
        along = self.along(tensor.shape, tensor.transposed)
        if along is None:
            (found,) = angles(tensor, backend)
            return None, backend.array(self.factors(found)[:, 0].tolist())
        weights = np.empty((tensor.models, along.count), backend.dtype)
        for number, found in enumerate(angles(tensor, backend, along)):
            weights[:, number * STEP :][:, :STEP] = self.factors(found)
        return along, backend.constant(weights)

    def apply(self, x: Any, start: int, state: Any, backend: Backend) -> Any:
        along, weights = state
        if along is None:
            return backend.apply(linear, x, weights)
        return backend.apply(linear_by_row, x, weights, start, along.across, along.width)
