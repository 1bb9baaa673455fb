"""Iso-C: the sum of task vectors with all its singular values made equal (Marczak et al. 2025, No Task Left Behind, section
4.1): of sum_t delta_t = U S V', mean(S) U V'.

Tensors that aren't matrices are averaged. The paper chooses lambda by validation (1 here). The mean is over the singular
values that aren't zero: for a sum of lower rank (adapters') an SVD would complete U and V with any vectors that fit, and
they would count as much as the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..backends.backend import Backend
from ..records import record
from .shared.base import Tensor, linear
from .shared.method import LAMBDA, WEIGHT_OF_ONE, Method, ResolvedMethod
from .shared.whole_matrix import Whole, spectrum


@record(frozen=True)
class IsoC(Whole):
    """Makes all singular values of the weighted sum equal."""

    def matrix_memory(self, models: int, m: int, n: int, itemsize: int) -> int:
        """Return the bytes of the sum; of the matrix, its left vectors while they are computed, and the result; and of the
        Gram matrix and its eigenvectors."""
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
            WEIGHT_OF_ONE,
            LAMBDA,
        ),
        about="many tasks, none of which is to dominate; it holds one whole tensor at a time in memory",
        about_cn="多个任务且不希望某一任务占主导时；一次在内存中保留一个完整张量",
        source="Marczak et al. 2025, Iso-C",
        paper="https://arxiv.org/abs/2502.04959",
        base="required",
        place=22,
    ),
)
