"""Read tensors some of whose rows, one per token, are combinations of other rows."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from ...backends.np_backend import widen
from ...checkpoints.tensors import TensorEntry
from ...dtypes import FLOAT32, FLOAT64, DType
from ...errors import WorkError
from .aligned import Open
from .entry import CACHE, READ, Combination, CompletedEntry, Pursuit, together
from .pursuit import pursue


class CompletedReader:
    """Read a completed tensor in the dtype in which it is merged: the ElementReader of CompletedEntry.

    compute: that dtype, "float32" or "float64". open_reader: returns readers of the tensors that it is made of.

    Coefficients are computed when a row is read that needs them. Raises WorkError then, and what the readers raise.
    """

    def __init__(self, entry: CompletedEntry, compute: str, open_reader: Open):
        self.dtype: DType = FLOAT32 if compute == "float32" else FLOAT64
        self._entry, self._open, self._compute = entry, open_reader, compute
        self._known, self._source = open_reader(entry.known, compute), _Wide(entry.source, compute, open_reader)
        self._at = np.frombuffer(entry.at, np.int64)
        self._number, self._row = -1, np.empty(0)
        self._table: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    def read(self, start: int, out: np.ndarray) -> None:
        """Fill `out`, of shape (n,), with the elements from index `start` on."""
        self._known.read(start, out)
        columns = self._entry.axis == 1 or len(self._entry.shape) == 1  # a vector is one row with a column per token
        width = self._entry.shape[-1] if columns else math.prod(self._entry.shape[1:])
        first, last = start // width, -(-(start + out.size) // width)
        lines = range(first, last) if columns else self._at[slice(*np.searchsorted(self._at, (first, last)))].tolist()
        for line in lines:
            begin, end = max(start, line * width), min(start + out.size, (line + 1) * width)
            piece = out[begin - start : end - start]
            if columns:
                here = slice(*np.searchsorted(self._at, (begin - line * width, end - line * width)))
                if here.start < here.stop:
                    piece[self._at[here] - (begin - line * width)] = self._columns(line)[here]
            else:
                piece[:] = self._combined(line, width)[begin - line * width : end - line * width]

    def _combined(self, line: int, width: int) -> np.ndarray:
        """Return a row that is made, (width,) float64."""
        if line != self._number:
            rows, coefficients, ends = self._coefficients()
            place = int(np.searchsorted(self._at, line))
            mine = slice(int(ends[place - 1]) if place else 0, int(ends[place]))
            self._number, self._row = line, np.zeros(width)
            for row, coefficient in zip(rows[mine].tolist(), coefficients[mine].tolist(), strict=True):
                self._row += coefficient * self._source.read(row * width, width)
        return self._row

    def _columns(self, line: int) -> np.ndarray:
        """Return the elements that are made in one row of a tensor with a column per token, (n,) float64."""
        if line != self._number:
            rows, coefficients, ends = self._coefficients()
            width = self._entry.source.shape[-1]
            terms = coefficients * self._source.read(line * width, width)[rows]
            sizes = np.diff(ends, prepend=0)
            self._number, self._row = line, np.zeros(len(ends))
            if terms.size:
                self._row[sizes > 0] = np.add.reduceat(terms, (ends - sizes)[sizes > 0])
        return self._row

    def _coefficients(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the rows of the source, their coefficients, and where those of each row that is made end."""
        if self._table is None:
            how = self._entry.how
            if isinstance(how, Combination):
                rows, coefficients = np.frombuffer(how.rows, np.int64), np.frombuffer(how.coefficients)
                self._table = rows, coefficients, np.cumsum(np.frombuffer(how.counts, np.int64))
            else:
                self._table = self._pursued(how)
        return self._table

    def _pursued(self, how: Pursuit) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        (atoms, _), (count, width) = how.atoms.shape, how.targets.shape
        k, source = min(how.k, atoms, width), _Atoms(how.atoms, self._compute, self._open)
        targets, step = _Wide(how.targets, self._compute, self._open), together(width, how.k)
        chosen, coefficients = np.empty((count, k), np.int64), np.empty((count, k))
        for first in range(0, count, step):
            these = targets.read(first * width, min(step, count - first) * width).astype(np.float64).reshape(-1, width)
            done = slice(first, first + len(these))
            try:
                chosen[done], coefficients[done] = pursue(these, source.blocks, k)
            except ValueError as error:
                files = ", ".join(sorted(how.atoms.files))
                raise WorkError(f"{files}: tensor {how.atoms.name!r}, to which tokens are compared, {error}") from None
        return np.frombuffer(how.rows, np.int64)[chosen].ravel(), coefficients.ravel(), k * np.arange(1, count + 1)


class _Wide:
    """Read elements of a tensor, widened to the dtype in which it is merged."""

    def __init__(self, entry: TensorEntry, compute: str, open_reader: Open):
        self._reader = open_reader(entry, compute)
        self._dtype = (FLOAT32 if compute == "float32" else FLOAT64).raw
        self._raw, self._out = np.empty(0, self._reader.dtype.raw), np.empty(0, self._dtype)

    def read(self, start: int, count: int) -> np.ndarray:
        """Return `count` elements from index `start` on, (count,). The array is used again by the next call."""
        if self._raw.size < count:
            self._raw, self._out = np.empty(count, self._reader.dtype.raw), np.empty(count, self._dtype)
        self._reader.read(start, self._raw[:count])
        widen(self._raw[:count], self._reader.dtype, self._out[:count])
        return self._out[:count]


class _Atoms:
    """Read atoms block by block, again and again; they are kept if they are few."""

    def __init__(self, entry: TensorEntry, compute: str, open_reader: Open):
        (self._count, self._width), self._wide = entry.shape, _Wide(entry, compute, open_reader)
        self._kept: np.ndarray | None = None
        if self._count * self._width * 8 <= CACHE:
            self._kept = self._wide.read(0, self._count * self._width).reshape(-1, self._width)

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (the first atom, (m, width)), all atoms in order."""
        if self._kept is not None:
            yield 0, self._kept
            return
        step = max(1, READ // self._width)
        for first in range(0, self._count, step):
            count = min(step, self._count - first)
            yield first, self._wide.read(first * self._width, count * self._width).reshape(-1, self._width)
