"""Read tensors with LoRA adapters folded in: read the stored elements, widen them, add the low-rank product, and scale rows
or columns to DoRA's lengths. Of an adapter, only the factors for one tensor are in memory.
"""

from __future__ import annotations

import math

import numpy as np

from ...backends.kernels import low_rank
from ...backends.np_backend import widen
from ...checkpoints.files import Files
from ...checkpoints.tensors import TensorEntry
from ...dtypes import FLOAT32, FLOAT64, DType
from .entry import STEP, AdaptedEntry, LowRank


class AdaptedReader:
    """Read an adapted tensor in the dtype in which it is merged: the ElementReader of AdaptedEntry.

    compute: that dtype, "float32" or "float64". Raises WorkError when it is made (which reads the factors, and the whole
    tensor for DoRA's lengths) and when it reads.
    """

    def __init__(self, entry: AdaptedEntry, compute: str, files: Files):
        self.dtype: DType = FLOAT32 if compute == "float32" else FLOAT64
        self._stored, self._files = entry.stored, files
        self._columns = max(1, self._stored.shape[-1] if self._stored.shape else 1)
        self._raw = np.empty(STEP, self._stored.dtype.raw)
        self._changes: list[_Product | _Factors] = []
        for change in entry.changes:
            if isinstance(change, LowRank):
                self._changes.append(_Product(change, self.dtype, files))
            else:
                factors = self._to_lengths(_matrix(change.lengths, files).reshape(-1), change.axis)
                self._changes.append(_Factors(factors.astype(self.dtype.raw), self._columns, change.axis))

    def read(self, start: int, out: np.ndarray) -> None:
        """Fill `out`, of shape (n,), with the elements from index `start` on. Raises WorkError."""
        for first in range(0, out.size, STEP):
            block = out[first : first + STEP]
            raw = self._raw[: block.size]
            self._files.read(self._stored, start + first, raw)
            widen(raw, self._stored.dtype, block)
            for change in self._changes:
                change.apply(block, start + first)

    def _to_lengths(self, lengths: np.ndarray, axis: int) -> np.ndarray:
        """Return the factors (n,) float64 that scale the rows or columns, with the changes so far, to these lengths.

        The factor of a row of zeros is 0.
        """
        squares = np.zeros(lengths.size, np.float64)
        size = math.prod(self._stored.shape)
        block = np.empty(min(STEP, size), self.dtype.raw)
        for start in range(0, size, STEP):
            part = block[: min(STEP, size - start)]
            self.read(start, part)
            low_rank.add_squares(part, start, self._columns, axis, squares)
        factors = np.zeros_like(squares)
        np.divide(lengths, np.sqrt(squares), out=factors, where=squares != 0)  # NaN stays NaN
        return factors


class _Product:
    """Add scale * left @ middle @ right to a matrix."""

    def __init__(self, change: LowRank, dtype: DType, files: Files):
        left = np.ones((1, 1)) if change.left is None else _matrix(change.left, files)
        if change.middle is not None:
            product = np.zeros((left.shape[0], change.middle.shape[-1]))
            low_rank.add_low_rank(product.reshape(-1), 0, left, _matrix(change.middle, files))
            left = product
        self._left = (left * change.scale).astype(dtype.raw)
        self._right = _matrix(change.right, files).astype(dtype.raw)

    def apply(self, x: np.ndarray, start: int) -> None:
        """Change, in place, the elements x of the matrix from index `start` on."""
        low_rank.add_low_rank(x, start, self._left, self._right)


class _Factors:
    """Multiply each row or column of a matrix by a factor. axis: 0 for rows, 1 for columns. columns: of the matrix."""

    def __init__(self, factors: np.ndarray, columns: int, axis: int):
        self._factors, self._columns, self._axis = factors, columns, axis

    def apply(self, x: np.ndarray, start: int) -> None:
        """Change, in place, the elements x of the matrix from index `start` on."""
        low_rank.scale_rows(x, start, self._columns, self._axis, self._factors)


def _matrix(entry: TensorEntry, files: Files) -> np.ndarray:
    """Read a whole tensor as a float64 matrix; a vector becomes a matrix of one row."""
    raw, out = np.empty(math.prod(entry.shape), entry.dtype.raw), np.empty(math.prod(entry.shape))
    files.read(entry, 0, raw)
    widen(raw, entry.dtype, out)
    return out.reshape(entry.shape if len(entry.shape) == 2 else (1, -1))
