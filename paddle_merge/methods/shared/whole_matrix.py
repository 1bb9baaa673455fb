"""What methods on singular vectors share: a whole matrix of each task vector in memory, its spectrum, one thread.

All is computed in float64 by NumPy on the host, on whatever device blocks are. Singular vectors come from the eigenvectors
of the smaller Gram matrix, several times faster than an SVD; singular values below 1e-6 of the largest, which it can't tell
from none, count as none: against a float64 SVD the error of what is made stays below 1e-6 of the largest singular value.

BLAS's results depend on how many threads it takes (another order of sums), so it takes one; workers run side by side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...backends.backend import Backend
from ...backends.budget import MemoryBudget
from .base import Tensor, linear

NEGLIGIBLE = 1e-6  # of the largest singular value


def spectrum(matrix: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """matrix (m, n) float64, m >= n -> the `count` largest singular values (r,), or as many as there are, and their vectors:
    (m, r), (r,), (n, r), each left vector in step with its right one."""
    squares, right = np.linalg.eigh(matrix.T @ matrix)
    squares, right = squares[::-1][:count], right[:, ::-1][:, :count]
    right = np.ascontiguousarray(right[:, squares > NEGLIGIBLE**2 * max(squares[0], 0.0)])
    left, triangle = np.linalg.qr(matrix @ right)  # orthonormal, however small the singular value
    values = np.diagonal(triangle)
    return left * np.where(values < 0, -1.0, 1.0), np.abs(values), right


def inverse_root(gram: np.ndarray) -> np.ndarray:
    """gram (r, r) float64 -> its inverse square root, in the space where it isn't zero, to rounding errors."""
    values, vectors = np.linalg.eigh(gram)
    vectors = vectors[:, values > 1e-10 * values[-1]]
    values = values[values > 1e-10 * values[-1]]
    return np.asarray((vectors / np.sqrt(values)) @ vectors.T)


def is_matrix(shape: tuple[int, ...]) -> bool:
    """Whether it has at least two rows and two columns."""
    return len(shape) == 2 and min(shape) > 1


@dataclass(frozen=True)
class Whole:
    """Merges matrices as a whole, and takes the mean of other tensors. weights: one per model, what its task vectors are
    multiplied by."""

    weights: tuple[float, ...]

    measures = True

    def problems(self, models: int) -> list[str]:
        return []

    def effective_weights(self, models: int) -> Sequence[float]:
        return self.weights

    def memory(self, models: int, size: int, itemsize: int, budget: MemoryBudget) -> int:
        return 0

    def row_memory(self, models: int, shape: tuple[int, ...], transposed: bool, itemsize: int) -> int:
        """What `prepare` takes beside blocks."""
        if not is_matrix(shape):
            return 0
        n, m = sorted(shape)
        return self.matrix_memory(models, m, n, itemsize)

    def matrix_memory(self, models: int, m: int, n: int, itemsize: int) -> int:
        """The same of matrices (m, n), m >= n."""
        raise NotImplementedError

    def read(self, tensor: Tensor, backend: Backend) -> np.ndarray:
        """(k, size), of compute dtype: what `merge` wants of the matrix."""
        raise NotImplementedError

    def merge(self, matrices: Sequence[Callable[[], np.ndarray]]) -> np.ndarray:
        """k matrices (m, n), m >= n, made when called: float64, finite, the largest element of all about 1 -> (m, n)."""
        raise NotImplementedError

    def prepare(self, tensor: Tensor, backend: Backend) -> Any:
        """The merged tensor, flat, on the host; None if it isn't a matrix of at least two rows and columns."""
        if not is_matrix(tensor.shape):
            return None
        from threadpoolctl import threadpool_limits

        rows = self.read(tensor, backend)
        spoilt = ~np.isfinite(rows).all(0)
        rows[:, spoilt] = 0
        size = max(float(rows.max()), -float(rows.min()))
        if size == 0:
            merged = np.zeros(tensor.size, rows.dtype)
        else:
            power = math.frexp(size)[1]  # so that no square leaves float64
            m, n = tensor.shape
            on_side = m < n or (m == n and tensor.transposed)  # one model in either layout is the same matrix here

            def matrix(row: np.ndarray) -> np.ndarray:
                wide = np.ldexp(row.reshape(m, n).T if on_side else row.reshape(m, n), -power, dtype=np.float64)
                return np.ascontiguousarray(wide)

            with threadpool_limits(1, "blas"):
                made = self.merge([lambda row=row: matrix(row) for row in rows])  # type: ignore[misc]
            made = made.T if on_side else made
            merged = rows[0]
            np.ldexp(made, power, out=merged.reshape(m, n), casting="same_kind")
        merged[spoilt] = np.nan
        return merged

    def apply(self, x: Any, start: int, state: Any, backend: Backend) -> Any:
        if state is None:
            return backend.apply(linear, x, backend.array([weight / len(self.weights) for weight in self.weights]))
        return backend.constant(state[start : start + x[0].shape[0]].copy())  # what is made of it may reuse its memory
