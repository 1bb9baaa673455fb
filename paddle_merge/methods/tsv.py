"""TSV-Merge: keep the largest singular vectors of each task vector, and make those of all tasks orthogonal to each other
(Gargiulo et al. 2025, Task Singular Vectors, section 4.2 and algorithm 1).

Of T models' matrices delta_t = U_t S_t V_t', each gives its r = k * min(m, n) largest singular values; U = [U_1 ... U_T], S
and V likewise. U = P D Q' makes U_perp = P Q', the nearest orthonormal matrix, V's likewise; merged: U_perp S V_perp'.
Other tensors are averaged. k is 1/T in the paper, lambda 1.

Where singular vectors aren't determined (task vectors of low rank, as adapters' are, or equal models), an SVD returns any
that fit, and they would count as much as the others. Here those of singular values that are zero are left out. So equal
models give the model, as far as the share k of its singular vectors does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..backends.backend import Backend
from ..records import record
from .shared.base import Tensor
from .shared.method import LAMBDA, WEIGHT_OF_ONE, Method, Parameter, ResolvedMethod
from .shared.problems import Problem
from .shared.whole_matrix import Whole, inverse_root, spectrum


@record(frozen=True)
class Tsv(Whole):
    """Merges matrices by their singular vectors. k: the share of singular vectors to keep of each model."""

    k: float = 1.0

    def kept(self, rank: int) -> int:
        """Return how many singular vectors of a model to keep, of `rank`."""
        return max(1, int(rank * self.k + 1e-9))

    def matrix_memory(self, models: int, m: int, n: int, itemsize: int) -> int:
        """Return the larger of two sums, beside the singular vectors of all models: one model's matrix, its Gram matrix'
        eigenvectors and its singular vectors; or all models' singular vectors in one matrix, their Gram matrices, the
        inverse roots of these and the result."""
        r = models * self.kept(n)
        one = 2 * m * n + 6 * n * n + 3 * (m + n) * self.kept(n)
        all_of = (m + n) * r + 6 * r * r + n * r + 2 * m * n
        return models * m * n * itemsize + 8 * ((m + n) * r + max(one, all_of))

    def read(self, tensor: Tensor, backend: Backend) -> np.ndarray:
        rows = np.empty((tensor.models, tensor.size), backend.dtype)
        for start, x in tensor.deltas():
            for row, into in zip(x, rows, strict=True):
                into[start : start + row.shape[0]] = backend.fetch(row)()
        return rows

    def merge(self, matrices: Sequence[Callable[[], np.ndarray]]) -> np.ndarray:
        lefts, values, rights = [], [], []
        for weight, make in zip(self.weights, matrices, strict=True):
            matrix = make()
            if not matrix.any():
                continue  # a matrix of zeros has no singular vectors
            left, its, right = spectrum(matrix, self.kept(matrix.shape[1]))
            lefts.append(left)
            values.append(weight * its)
            rights.append(right)
        left, right = np.concatenate(lefts, axis=1), np.concatenate(rights, axis=1)
        lefts.clear()
        middle = inverse_root(left.T @ left) @ (np.concatenate(values)[:, None] * inverse_root(right.T @ right))
        return np.asarray(left @ (middle @ right.T))


def _tsv(weight: tuple[float, ...], k: float | None, **others: float) -> ResolvedMethod:
    return ResolvedMethod(None, Tsv(weight, 1.0 / len(weight) if k is None else k), others["lambda"])


def _problems(k: float | None, **others: object) -> list[Problem]:
    if k is not None and not 0.0 < k <= 1.0:
        return [Problem("k", f"{k:g} is the share of singular vectors to keep: greater than 0 and at most 1")]
    return []


METHODS = (
    Method(
        "tsv",
        _tsv,
        (
            WEIGHT_OF_ONE,
            Parameter("k", float, None, about="share of singular vectors to keep; 1 / models unless given"),
            LAMBDA,
        ),
        about="many tasks whose matrices interfere; it holds one whole tensor at a time in memory",
        about_cn="多个任务的矩阵互相干扰时；一次在内存中保留一个完整张量",
        source="Gargiulo et al. 2025, TSV-Merge",
        paper="https://arxiv.org/abs/2412.00081",
        problems=_problems,
        base="required",
        place=21,
    ),
)
