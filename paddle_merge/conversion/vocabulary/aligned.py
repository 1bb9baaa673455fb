"""Read tensors with a row per token in the order of another vocabulary.

Every row is the mean of the rows that picks give for it (usually one), or zeros if there are none.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ...backends.np_backend import widen
from ...checkpoints.tensors import ElementReader, TensorEntry
from ...dtypes import FLOAT32, FLOAT64, DType
from .entry import STEP, AlignedEntry, Pick

Open = Callable[[TensorEntry, str], ElementReader]  # (entry, the dtype that it is merged in) -> its reader


def rows_of(runs: bytes, columns: int) -> np.ndarray:
    """Return what Pick.runs (5 columns) and AlignedEntry.means (2 columns) hold, (n, columns) int64."""
    return np.frombuffer(runs, np.int64).reshape(-1, columns)


class AlignedReader:
    """Read an aligned tensor in the dtype in which it is merged: the ElementReader of AlignedEntry.

    compute: that dtype, "float32" or "float64". open_reader: returns readers of the tensors from which rows are taken; what
    these raise is raised, when the reader is made and when it reads.
    """

    def __init__(self, entry: AlignedEntry, compute: str, open_reader: Open):
        self.dtype: DType = FLOAT32 if compute == "float32" else FLOAT64
        kind = _Columns if entry.axis else _Rows
        self._tensor = kind(entry, [_Picked(pick, compute, open_reader) for pick in entry.picks], self.dtype)

    def read(self, start: int, out: np.ndarray) -> None:
        """Fill `out`, of shape (n,), with the elements from index `start` on."""
        self._tensor.read(start, out)


class _Picked:
    """Read the tensor of one pick. runs: (n, 5) int64, as Pick.runs."""

    def __init__(self, pick: Pick, compute: str, open_reader: Open):
        self.runs, self.shape = rows_of(pick.runs, 5), pick.entry.shape
        self._reader = open_reader(pick.entry, compute)
        self._raw = np.empty(0, self._reader.dtype.raw)

    def read(self, start: int, out: np.ndarray) -> None:
        """Fill out with the elements of the pick's own tensor from index `start` on, widened."""
        if self._raw.size < out.size:
            self._raw = np.empty(out.size, self._reader.dtype.raw)
        raw = self._raw[: out.size]
        self._reader.read(start, raw)
        widen(raw, self._reader.dtype, out)


class _Rows:
    """Read an aligned tensor with a row per token, block by block."""

    def __init__(self, aligned: AlignedEntry, picks: list[_Picked], dtype: DType):
        self._picks, self._width = picks, math.prod(aligned.shape[1:])
        self._more = np.empty(STEP, dtype.raw)
        self._means, self._mean = rows_of(b"", 2), np.zeros(self._width)
        if aligned.means:
            self._mean = self._mean_of_all(aligned.shape[0], rows_of(aligned.means, 2))
            self._means = rows_of(aligned.means, 2)

    def read(self, start: int, out: np.ndarray) -> None:
        """Fill `out`, of shape (n,), with the elements from index `start` on."""
        for first in range(0, out.size, STEP):
            self._fill(start + first, out[first : first + STEP])

    def _fill(self, start: int, out: np.ndarray) -> None:
        """Fill `out`, of at most STEP elements, with the elements from index `start` on."""
        out[:] = 0
        stop, width = start + out.size, self._width
        for pick in self._picks:
            for at, row, count, of, place in self._touching(pick.runs, start, stop):
                first, last = max(start, at * width), min(stop, (at + count) * width)
                piece, source = out[first - start : last - start], row * width + first - at * width
                _put(pick, source, piece, self._more, of, place)
        for at, count in self._touching(self._means, start, stop):
            first, last = max(start, at * width), min(stop, (at + count) * width)
            out[first - start : last - start] = self._mean[np.arange(first, last) % width]

    def _touching(self, runs: np.ndarray, start: int, stop: int) -> list[list[int]]:
        """Return the runs that hold some of the elements start..stop."""
        ends = runs[:, 0] + runs[:, -1 if runs.shape[1] == 2 else 2]
        first = np.searchsorted(ends, start // self._width, "right")
        last = np.searchsorted(runs[:, 0], (stop - 1) // self._width, "right")
        return runs[first:last].tolist()  # type: ignore[no-any-return]

    def _mean_of_all(self, rows: int, but: np.ndarray) -> np.ndarray:
        """Return the mean of all rows but these, (width,) float64."""
        total, together = np.zeros(self._width), max(1, STEP // self._width)
        for first in range(0, rows, together):
            block = np.empty(min(together, rows - first) * self._width, self._more.dtype)
            self.read(first * self._width, block)  # zeros, so far, where the mean will be
            total += block.reshape(-1, self._width).sum(axis=0, dtype=np.float64)
        return total / max(1, rows - int(but[:, 1].sum()))


def _put(pick: _Picked, source: int, piece: np.ndarray, more: np.ndarray, of: int, place: int) -> None:
    """Set `piece` to the pick's elements from `source` on, or add them to it if they are part of a mean.

    more: a buffer of at least the size of piece. of: of how many tensors the mean is. place: which of them this one is; the
    last one also divides the sum.
    """
    if place == 0:
        pick.read(source, piece)
    else:
        pick.read(source, more[: piece.size])
        piece += more[: piece.size]
    if of > 1 and place == of - 1:
        piece /= of


class _Columns:
    """Read an aligned matrix [in, out] with a column per token, row by row."""

    def __init__(self, aligned: AlignedEntry, picks: list[_Picked], dtype: DType):
        self._picks = picks
        self._columns = aligned.shape[1]
        self._line, self._number = np.empty(self._columns, dtype.raw), -1
        self._sources = [np.empty(pick.shape[1], dtype.raw) for pick in picks]
        self._moves = [_moves(pick.runs) for pick in picks]
        means = rows_of(aligned.means, 2)
        self._means = _each(means[:, 0], means[:, 1])

    def read(self, start: int, out: np.ndarray) -> None:
        """Fill `out`, of shape (n,), with the elements from index `start` on."""
        while out.size:
            number, first = divmod(start, self._columns)
            if number != self._number:
                self._assemble(number)
            part = self._line[first:][: out.size]
            out[: part.size] = part
            out, start = out[part.size :], start + part.size

    def _assemble(self, number: int) -> None:
        """Assemble row `number` of the matrix in self._line."""
        line = self._line
        line[:] = 0
        for pick, source, moves in zip(self._picks, self._sources, self._moves, strict=True):
            pick.read(number * source.size, source)
            for at, column, of, place in moves:
                line[at] = source[column] if place == 0 else line[at] + source[column]
                if of > 1 and place == of - 1:
                    line[at] /= of
        if self._means.size:
            line[self._means] = line.sum(dtype=np.float64) / max(1, line.size - self._means.size)
        self._number = number


Move = tuple[np.ndarray, np.ndarray, int, int]  # (columns of the aligned tensor, columns of the source, of, place)


def _moves(runs: np.ndarray) -> list[Move]:
    """Return the columns of a pick by (of, place), its last two numbers: see Pick.runs."""
    ways = np.unique(runs[:, 3:], axis=0).tolist()
    found = []
    for of, place in ways:
        mine = runs[(runs[:, 3] == of) & (runs[:, 4] == place)]
        found.append((_each(mine[:, 0], mine[:, 2]), _each(mine[:, 1], mine[:, 2]), of, place))
    return found


def _each(first: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Return all numbers of the runs with these first numbers and counts, one run after the other."""
    before = np.cumsum(count) - count
    return np.repeat(first - before, count) + np.arange(count.sum())
