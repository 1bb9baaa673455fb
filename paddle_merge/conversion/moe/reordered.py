"""Read tensors with their experts and neurons in another order."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ...checkpoints.tensors import ElementReader, TensorEntry
from .entry import ReorderedEntry

STEP = 1 << 16  # elements whose rows are read at a time


class ReorderedReader:
    """Read a reordered tensor in the dtype in which the reader of its entry gives it: the ElementReader of ReorderedEntry.

    open_reader: returns the reader of that entry; what it raises is raised.
    """

    def __init__(self, entry: ReorderedEntry, open_reader: Callable[[TensorEntry], ElementReader]):
        self._reader = open_reader(entry.entry)
        self.dtype = self._reader.dtype
        count, self._rows, self._columns = entry.form
        self._matrices = np.frombuffer(entry.matrices, np.int32) if entry.matrices else np.arange(count)
        self._slices = np.frombuffer(entry.slices, np.int32).reshape(count, -1) if entry.slices else None
        self._axis, self._holds = entry.axis, entry.holds
        self._held, self._number = np.empty(0, self.dtype.raw), -1

    def read(self, start: int, out: np.ndarray) -> None:
        """Fill `out`, of shape (n,), with the elements from index `start` on."""
        size = self._rows * self._columns
        while out.size:
            number, first = divmod(start, size)
            part = out[: size - first]
            self._fill(number, first, part)
            out, start = out[part.size :], start + part.size

    def _fill(self, number: int, start: int, out: np.ndarray) -> None:
        """Fill `out` with elements of matrix `number` of the output, from element `start` of it on."""
        columns, source = self._columns, int(self._matrices[number]) * self._rows * self._columns
        slices = None if self._slices is None else self._slices[number]
        if slices is None:
            self._reader.read(source + start, out)
            return
        together = max(1, STEP // columns)
        for first in range(start // columns, -(-(start + out.size) // columns), together):
            rows = range(first, min(first + together, -(-(start + out.size) // columns)))
            block = self._in_columns(source, rows, slices) if self._axis == 2 else self._in_rows(source, rows, slices)
            low, high = max(start, rows.start * columns), min(start + out.size, rows.stop * columns)
            out[low - start : high - start] = block[low - rows.start * columns : high - rows.start * columns]

    def _in_columns(self, source: int, rows: range, slices: np.ndarray) -> np.ndarray:
        """Return rows of the matrix that begins at element `source`, flat, with their columns in another order."""
        block = np.empty((len(rows), self._columns), self.dtype.raw)
        self._reader.read(source + rows.start * self._columns, block.reshape(-1))
        return np.take(block, slices, axis=1).reshape(-1)

    def _in_rows(self, source: int, rows: range, slices: np.ndarray) -> np.ndarray:
        """Return these rows, in the new order, of the matrix that begins at element `source`, flat."""
        if self._holds:
            if self._number != source:
                self._held = np.empty((self._rows, self._columns), self.dtype.raw)
                self._reader.read(source, self._held.reshape(-1))
                self._number = source
            return np.take(self._held, slices[rows.start : rows.stop], axis=0).reshape(-1)
        block = np.empty((len(rows), self._columns), self.dtype.raw)
        for row, place in zip(block, slices[rows.start : rows.stop].tolist(), strict=True):
            self._reader.read(source + place * self._columns, row)
        return block.reshape(-1)
