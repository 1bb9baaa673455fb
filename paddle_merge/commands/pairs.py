"""Read the tensors of two checkpoints side by side, block by block."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..backends.np_backend import NumpyBackend, widen
from ..backends.scratch import Scratch
from ..checkpoints.files import Files
from ..checkpoints.tensors import TensorEntry
from ..dtypes import FLOAT32, FLOAT64, DType, compute_dtype
from ..run.sources import reader

BLOCK = 1 << 16  # elements read at a time


def raw_blocks(one: TensorEntry, other: TensorEntry, files: Files) -> Iterator[list[np.ndarray]]:
    """The elements of both as they are stored, block by block."""
    size = math.prod(one.shape)
    for start in range(0, size, BLOCK):
        raws = []
        for entry in (one, other):
            raws.append(np.empty(min(BLOCK, size - start), entry.dtype.raw))
            files.read(entry, start, raws[-1])
        yield raws


def same_bits(raws: list[np.ndarray], one: TensorEntry, other: TensorEntry) -> bool:
    return one.dtype == other.dtype and raws[0].tobytes() == raws[1].tobytes()


def subtract(raws: list[np.ndarray], one: TensorEntry, other: TensorEntry) -> tuple[np.ndarray, bool]:
    """(one - other [n] float64, whether there is a NaN or Inf in either)."""
    x, _, bad = NumpyBackend("float64").load(raws, [one.dtype, other.dtype], based=True)
    return x[0], any(bad)


class TensorReader:
    """Blocks of one tensor: `raw`, the elements as they are stored (an adapted one: as they would be, folded), and
    `numbers`, the same as float32 or float64. What one block gave is overwritten by the next."""

    def __init__(self, entry: TensorEntry, files: Files):
        self.raw = self.numbers = np.empty(0)
        compute = compute_dtype([entry.dtype])
        self._entry, self._reader, self._scratch = entry, reader(entry, compute, files), Scratch()
        self._backend = NumpyBackend(compute)

    def read(self, start: int, count: int) -> None:
        """Raises WorkError."""
        dtype = self._entry.dtype
        self.raw = self._scratch.array("raw", count, self._reader.dtype.raw)
        self._reader.read(start, self.raw)
        if self._entry.computed:
            self.raw = self._backend.store(self.raw, dtype)[0]
        if dtype in (FLOAT32, FLOAT64):
            self.numbers = self.raw
        elif dtype.is_float:
            self.numbers = self._scratch.array("numbers", count, np.float32)
            widen(self.raw, dtype, self.numbers)
        else:
            self.numbers = self.raw.astype(np.float64)

    def bits(self, units: DType, wide: type[np.unsignedinteger[Any]]) -> np.ndarray:
        """(n,) uint32 or uint64: the elements' bits in the dtype `units`; integers in their order."""
        raw = self.raw
        if not units.is_float:
            signed = raw.dtype != np.uint64
            return raw.astype(np.int64).view(np.uint64) ^ np.uint64(1 << 63) if signed else raw
        if self._entry.dtype != units:
            raw = self._backend.store(self.numbers, units)[0]
        if raw.itemsize == np.dtype(wide).itemsize:
            return raw.view(wide)
        result = self._scratch.array("bits", raw.size, wide)
        result[...] = raw.view(f"<u{raw.itemsize}")
        return result
