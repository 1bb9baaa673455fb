"""Merge by singular vectors: such methods hold whole matrices in memory and use their spectrum.

Everything is computed in float64 by NumPy on the host, on whatever device blocks are. Singular vectors come from the
eigenvectors of the smaller Gram matrix, which is several times faster than an SVD. Singular values below 1e-6 of the largest
can't be told from zero that way and count as zero: compared with a float64 SVD, the error stays below 1e-6 of the largest.

BLAS's results depend on its number of threads (another order of sums), so it gets one; workers run in parallel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...backends.backend import Backend
from ...records import record
from .base import Merger, Tensor, linear

NEGLIGIBLE = 1e-6  # of the largest singular value


def spectrum(matrix: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the `count` largest singular values of a matrix that aren't zero, and their vectors: (m, r), (r,), (n, r).

    matrix: (m, n) float64, m >= n. The signs of left and right vectors agree: matrix ~ left * values @ right.T.
    """
    squares, right = np.linalg.eigh(matrix.T @ matrix)
    squares, right = squares[::-1][:count], right[:, ::-1][:, :count]
    right = np.ascontiguousarray(right[:, squares > NEGLIGIBLE**2 * max(squares[0], 0.0)])
    left, triangle = np.linalg.qr(matrix @ right)  # orthonormal, however small the singular value
    values = np.diagonal(triangle)
    return left * np.where(values < 0, -1.0, 1.0), np.abs(values), right


def inverse_root(gram: np.ndarray) -> np.ndarray:
    """Return the inverse square root of gram (r, r) float64 in the subspace where, within rounding, it isn't zero."""
    values, vectors = np.linalg.eigh(gram)
    vectors = vectors[:, values > 1e-10 * values[-1]]
    values = values[values > 1e-10 * values[-1]]
    return np.asarray((vectors / np.sqrt(values)) @ vectors.T)


def is_matrix(shape: tuple[int, ...]) -> bool:
    """Tell whether the shape is that of a matrix of at least two rows and two columns."""
    return len(shape) == 2 and min(shape) > 1


@record(frozen=True)
class Whole(Merger):
    """Merges matrices as a whole, and takes the mean of other tensors. weights: one per model, factors on task vectors."""

    weights: tuple[float, ...]

    whole_matrices = True

    @property
    def measures(self) -> bool:
        return True

    def effective_weights(self, models: int) -> Sequence[float]:
        return self.weights

    def row_memory(self, models: int, shape: tuple[int, ...], transposed: bool, itemsize: int) -> int:
        """Return the bytes of whole matrices, and of what is computed from them."""
        if not is_matrix(shape):
            return 0
        n, m = sorted(shape)
        return self.matrix_memory(models, m, n, itemsize)

    def matrix_memory(self, models: int, m: int, n: int, itemsize: int) -> int:
        """Return the same for matrices (m, n), m >= n."""
        raise NotImplementedError

    def read(self, tensor: Tensor, backend: Backend) -> np.ndarray:
        """Return what `merge` needs of the matrix: (k, size) in compute dtype."""
        raise NotImplementedError

    def merge(self, matrices: Sequence[Callable[[], np.ndarray]]) -> np.ndarray:
        """Return the merged matrix (m, n), m >= n.

        matrices: k functions that each make a matrix (m, n), float64 and finite; the largest element of all is about 1.
        """
        raise NotImplementedError

    def prepare(self, tensor: Tensor, backend: Backend) -> Any:
        """Return the merged tensor, flat, on the host; None if it isn't a matrix of at least two rows and columns."""
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
            on_side = m < n or (m == n and tensor.transposed)  # so that a model is the same matrix here in either layout

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
        return backend.constant(state[start : start + x[0].shape[0]].copy())  # a copy: later steps may reuse its memory
