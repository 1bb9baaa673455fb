"""Merge by norms and angles: such methods need only the models' dot products, and return a weighted sum of the models.

A first pass adds up the Gram matrix, the weights follow from it in float64, and a second pass applies them. Angles are those
between whole tensors, or between the rows or columns of a tensor, each of which then has weights of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ...backends.backend import Backend
from ...backends.formula import formula
from ...records import record
from .base import Merger, Tensor, linear, total
from .rows import Rows

SAME = 1e-12  # cosines this near to 1 or -1 are that, but for the rounding of long sums
_SMALL = 2.0**-530  # the largest float64 times this can be squared
STEP = 1 << 10  # vectors whose weights are computed together


@record(frozen=True)
class Angles:
    """Norms of, and cosines between, the models' vectors, for each of n vectors of a tensor.

    norms: (models, n). cosines: (models, models, n); 0 where a vector is zero. Both float64. Where a number is NaN or Inf,
    or a norm leaves float64, norms aren't finite and cosines are 0.
    """

    norms: Any
    cosines: Any

    @property
    def known(self) -> Any:
        """Whether all models' norms are finite, (n,)."""
        return np.isfinite(self.norms).all(0)


def angles(tensor: Tensor, backend: Backend, along: Rows | None = None) -> Iterator[Angles]:
    """Yield the norms and angles of each vector of the tensor, in order, up to STEP at a time.

    along: the vectors; None: the whole tensor is one. Reads the tensor once, or twice if squares leave the range of float64.
    """
    grams = _grams(tensor, backend, along, 1.0)
    factors = np.ones(grams.shape[1])
    if not tensor.narrow and not (good := np.isfinite(grams).all(0)).all():
        smaller = _grams(tensor, backend, along, _SMALL)
        np.copyto(grams, smaller, where=~good)
        factors[~good] = _SMALL
    for begin in range(0, grams.shape[1], STEP):
        yield _angles(grams[:, begin : begin + STEP], factors[begin : begin + STEP], tensor.models)


def _grams(tensor: Tensor, backend: Backend, along: Rows | None, factor: float) -> Any:
    """Return the dot products of all pairs of models (0 0, 1 0, 1 1, 2 0 ...), (pairs, n), of elements times the factor."""
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
    """Return sum_k w_k x_k, (n,), where w_k is that of the element's vector.

    x: a row (n,) per model, the elements from `start` on. weights: (models, vectors). across, width: how vectors lie in the
    tensor (rows.Rows).
    """
    element = xp.arange(start, start + len(x[0]))
    vector = xp.remainder(element, width) if across else xp.floor_divide(element, width)
    return total(xp.take(weight, vector) * row for weight, row in zip(weights, x, strict=True))


@record(frozen=True)
class ByAngles(Merger):
    """Weighs models by their norms and angles. A subclass says how, and between which vectors."""

    @property
    def measures(self) -> bool:
        return True

    def factors(self, found: Angles) -> Any:
        """Return the models' factors for each of n vectors, (models, n) float64."""
        raise NotImplementedError

    def along(self, shape: tuple[int, ...], transposed: bool) -> Rows | None:
        """Return the vectors that have weights of their own; None: the tensor is one vector."""
        return None

    def effective_weights(self, models: int) -> Sequence[float]:
        return [1.0 / models] * models

    def row_memory(self, models: int, shape: tuple[int, ...], transposed: bool, itemsize: int) -> int:
        """Return the bytes of each vector's dot products and weights."""
        along = self.along(shape, transposed)
        if along is None:
            return 0
        pairs = models * (models + 1) // 2
        grams = pairs * 8 if itemsize < 8 else pairs * 17  # they are taken twice, with factors
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
