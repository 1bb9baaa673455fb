"""Read tensors of quantised checkpoints as the numbers that their codes stand for: (code - zero) * scale, in float32.

Of a tensor's scales, only those of the rows that are read are in memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from ..backends.kernels import scales as kernels
from ..backends.np_backend import widen
from ..checkpoints.files import Files
from ..checkpoints.parts import boxes
from ..checkpoints.scaled import STEP, Grid, ScaledEntry
from ..checkpoints.tensors import StoredEntry, TensorEntry
from ..checkpoints.views import select
from ..dtypes import FLOAT8_E8M0FNU, FLOAT32, FLOAT64, DType

Slice = tuple[int, int]


class ScaledReader:
    """Read a tensor of codes and scales in the dtype in which it is merged: the ElementReader of ScaledEntry.

    compute: that dtype, "float32" or "float64"; the numbers are those of float32 in either. Raises WorkError when it reads.
    """

    def __init__(self, entry: ScaledEntry, compute: str, files: Files):
        self.dtype: DType = FLOAT32 if compute == "float32" else FLOAT64
        self._entry, self._files = entry, files
        self._raw = np.empty(min(STEP, math.prod(entry.shape)), entry.codes.dtype.raw)
        # Files keeps what it reads of a scattered tensor for the next read of the same name, so all have the codes' name.
        self._scales = [_Bands(grid.scales.renamed(entry.codes.name), files) for grid in entry.grids]
        self._zeros = [_Bands(grid.zeros.renamed(entry.codes.name), files) if grid.zeros else None for grid in entry.grids]

    def read(self, start: int, out: np.ndarray) -> None:
        """Fill `out`, of shape (n,), with the elements from index `start` on. Raises WorkError."""
        codes = self._entry.codes
        for first in range(0, out.size, STEP):
            block = out[first : first + STEP]
            raw = self._raw[: block.size]
            self._files.read(codes, start + first, raw)
            to_numbers(raw, codes.dtype, block)
            if self._entry.zero:
                block -= block.dtype.type(self._entry.zero)
            done = 0
            for corner, shape in boxes(self._entry.shape, start + first, start + first + block.size):
                size = math.prod(shape)
                self._scale(block[done : done + size].reshape(shape), corner)
                done += size

    def _scale(self, x: np.ndarray, corner: Sequence[int]) -> None:
        """Scale, in place, the box x of the tensor whose first element is at `corner`."""
        for grid, scales, zeros in zip(self._entry.grids, self._scales, self._zeros, strict=True):
            inside = _overlap(corner, x.shape, grid)
            if inside is None:
                continue
            lows = [low - at for (low, _), at in zip(inside, grid.at, strict=True)]
            box = x[tuple(slice(low - at, high - at) for (low, high), at in zip(inside, corner, strict=True))]
            for index, matrix in _matrices(box):
                firsts = [low + more for low, more in zip(lows, (*index, 0, 0), strict=True)]
                begins = [first + phase for first, phase in zip(firsts, grid.phase, strict=True)]
                blocks = [begin // size for begin, size in zip(begins, grid.block, strict=True)]
                stop = (begins[-2] + matrix.shape[0] - 1) // grid.block[-2] + 1
                rows = (*blocks[:-2], blocks[-2]), stop
                kernels.scale_blocks(
                    matrix,
                    scales.rows(*rows),
                    zeros.rows(*rows) if zeros is not None else _NONE,
                    grid.block[-2],
                    begins[-2] % grid.block[-2],
                    grid.block[-1],
                    begins[-1],
                )


_NONE = np.empty((0, 0), np.float32)


def _overlap(corner: Sequence[int], shape: Sequence[int], grid: Grid) -> list[Slice] | None:
    """Return the indices, along each axis, that a box of a tensor has in common with a grid's; None if there are none."""
    found = []
    for first, count, at, size in zip(corner, shape, grid.at, grid.shape, strict=True):
        low, high = max(first, at), min(first + count, at + size)
        if low >= high:
            return None
        found.append((low, high))
    return found


def _matrices(box: np.ndarray) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
    """Yield the matrices of a stack of them, each with its index."""
    for index in np.ndindex(box.shape[:-2]):
        yield index, box[index]


class _Bands:
    """Read the scales of some rows of blocks, and keep them for the next reads."""

    def __init__(self, entry: StoredEntry, files: Files):
        self._entry, self._files = entry, files
        self._most = max(1, STEP // max(1, entry.shape[-1]))  # rows of blocks that are read together
        self._stack: tuple[int, ...] = (-1,)
        self._first = self._stop = 0  # which rows are held
        self._numbers = _NONE

    def rows(self, first: tuple[int, ...], stop: int) -> np.ndarray:
        """Return the rows of blocks from index `first` on, up to `stop` along its last axis: (rows, columns) float32."""
        *stack, begin = first
        if self._stack != tuple(stack) or begin < self._first or stop > self._stop:
            self._stack, self._first = tuple(stack), begin
            self._stop = min(max(stop, begin + self._most), self._entry.shape[-2])
            view: TensorEntry = self._entry
            for axis, (low, high) in enumerate([*((index, index + 1) for index in stack), (begin, self._stop)]):
                view = select(view, axis, [(low, high)], view.name)
            raw = np.empty(math.prod(view.shape), view.dtype.raw)
            self._files.read(view, 0, raw)
            self._numbers = np.empty((self._stop - begin, view.shape[-1]), np.float32)
            to_numbers(raw, view.dtype, self._numbers.reshape(-1))
        return self._numbers[begin - self._first : stop - self._first]


def to_numbers(raw: np.ndarray, dtype: DType, out: np.ndarray) -> None:
    """Convert stored elements raw (n,), of floats, integers or exponents, to numbers, into out (n,), float32 or float64."""
    if dtype.is_float:
        widen(raw, dtype, out)
    elif dtype is FLOAT8_E8M0FNU:
        out[...] = np.where(raw == 255, np.nan, np.ldexp(np.float32(1), raw.astype(np.int32) - 127))
    else:
        out[...] = raw
