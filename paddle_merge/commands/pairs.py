"""Read the tensors of two checkpoints side by side, block by block."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np

from ..backends.np_backend import NumpyBackend, widen
from ..backends.scratch import Scratch
from ..checkpoints.files import Files
from ..checkpoints.tensors import TensorEntry
from ..dtypes import FLOAT32, FLOAT64, DType, compute_dtype
from ..run.sources import reader

BLOCK = 1 << 16  # elements read at a time


def side_by_side(a: TensorReader, b: TensorReader, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Read the elements start..stop of two tensors of one shape. Raises WorkError.

    Yields (first, count) once both readers hold these elements, at most BLOCK at a time. The blocks begin at multiples of
    BLOCK if `start` does, so sums of blocks don't depend on how a tensor is divided among workers.
    """
    for first in range(start, stop, BLOCK):
        count = min(BLOCK, stop - first)
        a.read(first, count)
        b.read(first, count)
        yield first, count


def same_bits(a: TensorReader, b: TensorReader) -> bool:
    """Return whether the blocks that two readers hold have the same dtype and the same bits."""
    return a.dtype == b.dtype and a.raw.tobytes() == b.raw.tobytes()


class TensorReader:
    """A reader of blocks of one tensor; an adapted tensor is read as it would be stored if its adapter were folded in.

    Each call of `read` overwrites what the arrays of the one before it hold. scratch: for these arrays; one reader at a time
    may use it.
    """

    def __init__(self, entry: TensorEntry, files: Files, scratch: Scratch | None = None):
        self.dtype = entry.dtype
        self.raw = np.empty(0)  # [n], the elements as they are stored
        self._numbers: np.ndarray | None = None
        self._compute = compute_dtype([entry.dtype])
        self._entry, self._reader, self._scratch = entry, reader(entry, self._compute, files), scratch or Scratch()

    @cached_property  # few tensors need it
    def _backend(self) -> NumpyBackend:
        return NumpyBackend(self._compute)

    def read(self, start: int, count: int) -> None:
        """Read `count` elements from number `start`, in C order. Raises WorkError."""
        self._numbers = None
        self.raw = self._scratch.array("raw", count, self._reader.dtype.raw)
        self._reader.read(start, self.raw)
        if self._entry.computed:
            self.raw = self._backend.store(self.raw, self.dtype)[0]

    @property
    def numbers(self) -> np.ndarray:
        """The elements as numbers: [n] float64 for float64 and for integers, which are rounded to it; else float32."""
        if self._numbers is None:
            self._numbers = self._widened()
        return self._numbers

    def _widened(self) -> np.ndarray:
        if self.dtype in (FLOAT32, FLOAT64):
            return self.raw
        if not self.dtype.is_float:
            return self.raw.astype(np.float64)
        numbers = self._scratch.array("numbers", self.raw.size, np.float32)
        widen(self.raw, self.dtype, numbers)
        return numbers

    def bits(self, units: DType, wide: type[np.unsignedinteger[Any]]) -> np.ndarray:
        """Return the block's elements, rounded to the dtype `units`, as bits: [n] uint32 or uint64, whichever `wide` is.

        Integers are mapped to unsigned ones in the same order.
        """
        raw = self.raw
        if not units.is_float:
            signed = raw.dtype != np.uint64
            return raw.astype(np.int64).view(np.uint64) ^ np.uint64(1 << 63) if signed else raw
        if self.dtype != units:
            raw = self._backend.store(self.numbers, units)[0]
        if raw.itemsize == np.dtype(wide).itemsize:
            return raw.view(wide)
        result = self._scratch.array("bits", raw.size, wide)
        result[...] = raw.view(f"<u{raw.itemsize}")
        return result
