"""Iso-C: the sum of task vectors with all its singular values made equal (Marczak et al. 2025, No Task Left Behind, section
4.1): of sum_t delta_t = U S V', mean(S) U V'.

Tensors that aren't matrices are averaged. The paper chooses lambda by validation (1 here). The mean is over the singular
values that aren't zero: of a sum of lower rank (adapters') an SVD would fill U and V up with any vectors that fit, and they
would weigh as much as the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..backends.backend import Backend
from .shared.base import Tensor, linear
from .shared.method import Method, Parameter, ResolvedMethod
from .shared.whole_matrix import Whole, spectrum


@dataclass(frozen=True)
class IsoC(Whole):
    """No parameters but the weights."""

    def matrix_memory(self, models: int, m: int, n: int, itemsize: int) -> int:
        """The sum; the matrix, its left vectors as they are made, and the result; the Gram matrix and its eigenvectors."""
        return m * n * itemsize + 8 * (6 * m * n + 6 * n * n)

    def read(self, tensor: Tensor, backend: Backend) -> np.ndarray:
        weights, rows = backend.array(self.weights), np.empty((1, tensor.size), backend.dtype)
        for start, x in tensor.deltas():
            merged = backend.apply(linear, x, weights)
            rows[0, start : start + merged.shape[0]] = backend.fetch(merged)()
        return rows

    def merge(self, matrices: Sequence[Callable[[], np.ndarray]]) -> np.ndarray:
        (make,) = matrices
        matrix = make()
        left, values, right = spectrum(matrix, matrix.shape[1])
        return np.asarray(left @ (values.mean() * right.T))


def _iso_c(weight: tuple[float, ...], **others: float) -> ResolvedMethod:
    return ResolvedMethod(None, IsoC(weight), others["lambda"])


METHODS = (
    Method(
        "iso_c",
        _iso_c,
        (
            Parameter("weight", float, 1.0, each=True, about="how much a model counts"),
            Parameter("lambda", float, 1.0, about="factor on the merged task vector"),
        ),
        base="required",
        source="Marczak et al. 2025, Iso-C",
    ),
)
