"""Read tensors with LoRA adapters folded in: read the stored elements, widen them, add the low-rank product, scale rows or
columns to DoRA's lengths, and replace rows. Of an adapter, only the factors for one tensor (of a stack, one matrix) are in
memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby

import numpy as np

from ...backends.kernels import low_rank
from ...backends.np_backend import NumpyBackend, widen
from ...checkpoints.files import Files
from ...checkpoints.scaled import ScaledEntry
from ...checkpoints.tensors import StoredEntry, TensorEntry
from ...dtypes import FLOAT32, FLOAT64, DType
from ..scaled_reader import ScaledReader
from .entry import STEP, AdaptedEntry, Lengths, LowRank, Requantised, Rows


class AdaptedReader:
    """Read an adapted tensor in the dtype in which it is merged: the ElementReader of AdaptedEntry.

    compute: that dtype, "float32" or "float64". Raises WorkError when it is made (which reads the rows, and the whole
    tensor for DoRA's lengths) and when it reads.
    """

    def __init__(self, entry: AdaptedEntry, compute: str, files: Files):
        self.dtype: DType = FLOAT32 if compute == "float32" else FLOAT64
        self._stored = entry.stored
        self._before = (
            ScaledReader(entry.stored, compute, files)
            if isinstance(entry.stored, ScaledEntry)
            else _Widened(entry.stored, files)
        )
        self._columns = max(1, math.prod(self._stored.shape[1:]))
        self._changes: list[_Products | _Factors | _Rows | _Requantised] = []
        for kind, changes in groupby(entry.changes, type):
            its = list(changes)
            if kind is LowRank:
                self._changes.append(_Products([one for one in its if isinstance(one, LowRank)], self.dtype, files))
                continue
            for change in its:
                if isinstance(change, Rows):
                    self._changes.append(_Rows(change, self._columns, self.dtype, files))
                elif isinstance(change, Requantised):
                    self._changes.append(_Requantised(change, self, entry, self.dtype))
                elif isinstance(change, Lengths):
                    factors = self._to_lengths(read_matrix(change.lengths, files).reshape(-1), change.axis)
                    self._changes.append(_Factors(factors.astype(self.dtype.raw), self._columns, change.axis))

    def read(self, start: int, out: np.ndarray) -> None:
        """Fill `out`, of shape (n,), with the elements from index `start` on. Raises WorkError."""
        for first in range(0, out.size, STEP):
            block = out[first : first + STEP]
            self._before.read(start + first, block)
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


class _Widened:
    """Read a stored tensor in a wider dtype, at most STEP elements at a time."""

    def __init__(self, entry: StoredEntry, files: Files):
        self._entry, self._files, self._raw = entry, files, np.empty(STEP, entry.dtype.raw)

    def read(self, start: int, out: np.ndarray) -> None:
        """Fill `out`, of shape (n,), with the elements from index `start` on. Raises WorkError."""
        raw = self._raw[: out.size]
        self._files.read(self._entry, start, raw)
        widen(raw, self._entry.dtype, out)


class _Products:
    """Add scale * left @ middle @ right to the matrices of a stack, or to one matrix.

    changes: of matrices of one size. Factors are read when their matrix is first read, and those of one matrix are kept.
    """

    def __init__(self, changes: Sequence[LowRank], dtype: DType, files: Files):
        self._size, self._dtype, self._files = max(1, changes[0].size), dtype, files
        self._changes: dict[int, list[LowRank]] = {}  # by place
        for change in changes:
            self._changes.setdefault(change.place, []).append(change)
        self._place, self._factors = -1, list[tuple[np.ndarray, np.ndarray]]()

    def apply(self, x: np.ndarray, start: int) -> None:
        """Change, in place, the elements x of the stack from index `start` on."""
        done = 0
        while done < x.size:
            place, within = divmod(start + done, self._size)
            part = x[done : done + self._size - within]
            for left, right in self._of(place):
                low_rank.add_low_rank(part, within, left, right)
            done += part.size

    def _of(self, place: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return the factors (left, right) for the matrix at this place."""
        if place != self._place:
            self._factors = [self._read(change) for change in self._changes.get(place, ())]
            self._place = place
        return self._factors

    def _read(self, change: LowRank) -> tuple[np.ndarray, np.ndarray]:
        left = np.ones((1, 1)) if change.left is None else read_matrix(change.left, self._files)
        if change.middle is not None:
            product = np.zeros((left.shape[0], change.middle.shape[-1]))
            low_rank.add_low_rank(product.reshape(-1), 0, left, read_matrix(change.middle, self._files))
            left = product
        right = read_matrix(change.right, self._files)
        return (left * change.scale).astype(self._dtype.raw), right.astype(self._dtype.raw)


class _Rows:
    """Replace rows or columns of a matrix. columns: of the matrix."""

    def __init__(self, change: Rows, columns: int, dtype: DType, files: Files):
        values = read_matrix(change.values, files).astype(dtype.raw)
        last = {number: values[index] for index, number in enumerate(change.numbers)}
        self._numbers = np.array(sorted(last), np.int64)
        self._values = np.stack([last[number] for number in sorted(last)])
        self._columns, self._axis = columns, change.axis

    def apply(self, x: np.ndarray, start: int) -> None:
        """Change, in place, the elements x of the matrix from index `start` on."""
        first, last = start // self._columns, (start + x.size - 1) // self._columns
        if self._axis == 0:
            low, high = np.searchsorted(self._numbers, (first, last + 1))
            for number, values in zip(self._numbers[low:high], self._values[low:high], strict=True):
                begin = int(number) * self._columns - start
                skipped = max(0, -begin)
                part = x[begin + skipped : begin + self._columns]
                part[:] = values[skipped : skipped + part.size]
            return
        for row in range(first, last + 1):
            places = self._numbers + row * self._columns - start
            inside = (places >= 0) & (places < x.size)
            x[places[inside]] = self._values[inside, row]


class _Requantised:
    """Quantise and dequantise the rows or columns of a matrix. matrix: reads it, with the changes before this one."""

    def __init__(self, change: Requantised, matrix: AdaptedReader, entry: AdaptedEntry, dtype: DType):
        self._change, self._columns, self._stored = change, max(1, math.prod(entry.shape[1:])), entry.dtype
        self._backend = NumpyBackend("float32")
        self._largest = np.zeros(entry.shape[change.axis], np.float32)
        size = math.prod(entry.shape)
        block = np.empty(min(STEP, size), dtype.raw)
        for start in range(0, size, STEP):
            part = block[: min(STEP, size - start)]
            matrix.read(start, part)
            low_rank.add_largest(part, start, self._columns, change.axis, self._largest)
        self._scales = self._largest / np.float32(change.levels)
        self._round(self._scales)

    def apply(self, x: np.ndarray, start: int) -> None:
        """Change, in place, the elements x of the matrix from index `start` on."""
        change = self._change
        low_rank.requantise(x, start, self._columns, change.axis, self._largest, self._scales, change.levels)
        self._round(x)

    def _round(self, x: np.ndarray) -> None:
        """Round numbers to the tensor's dtype, in place."""
        raw, _ = self._backend.store(x.astype(np.float32), self._stored)
        widen(raw, self._stored, x)


class _Factors:
    """Multiply each row or column of a matrix by a factor. axis: 0 for rows, 1 for columns. columns: of the matrix."""

    def __init__(self, factors: np.ndarray, columns: int, axis: int):
        self._factors, self._columns, self._axis = factors, columns, axis

    def apply(self, x: np.ndarray, start: int) -> None:
        """Change, in place, the elements x of the matrix from index `start` on."""
        low_rank.scale_rows(x, start, self._columns, self._axis, self._factors)


def read_matrix(entry: TensorEntry, files: Files) -> np.ndarray:
    """Read a whole tensor as a float64 matrix: a vector as one row, a tensor of more than two axes as a row per index of the
    first."""
    raw, out = np.empty(math.prod(entry.shape), entry.dtype.raw), np.empty(math.prod(entry.shape))
    files.read(entry, 0, raw)
    widen(raw, entry.dtype, out)
    return out.reshape(entry.shape[0] if len(entry.shape) > 1 else 1, -1)
