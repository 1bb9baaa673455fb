"""Read the tensors that entry.py describes. Every element is a function of (seed, tensor, index), whatever is read together.

Normal numbers are Box and Muller's: sqrt(-2 ln u) * cos(2 pi v), with u and v of two independent hashes of the index.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ...backends.kernels import draws
from ...backends.masks import block_key, hash_block, mask_key
from ...backends.np_backend import widen
from ...checkpoints.tensors import ElementReader, TensorEntry
from ...dtypes import FLOAT32, FLOAT64, DType
from .entry import STEP, DrawnEntry, Dropped, ExpertEntry

Open = Callable[[TensorEntry, str], ElementReader]  # (entry, the dtype that it is merged in) -> its reader


def uniform(seed: int, stream: int, key: str, start: int, size: int) -> np.ndarray:
    """Return numbers above 0 and below 1 of the elements start .. start + size, (size,) float64.

    stream: numbers of different ones are independent. A block must not cross a multiple of 2**32 elements.
    """
    return (hash_block(mask_key(seed, stream, key), start, size) + 0.5) / 2.0**32


def normal(seed: int, stream: int, key: str, start: int, size: int) -> np.ndarray:
    """Return standard normal numbers of the elements start .. start + size, (size,) float64. The arguments are as of
    uniform; it takes the streams 2 * stream and 2 * stream + 1."""
    out = np.empty(size)
    draws.fill_normal(out, *_keys(seed, stream, key, start))
    return out


def _keys(seed: int, stream: int, key: str, start: int) -> list[np.uint32]:
    """Return the four keys of normal numbers from element `start` on."""
    pairs = (block_key(mask_key(seed, number, key), start) for number in (2 * stream, 2 * stream + 1))
    return [np.uint32(word) for pair in pairs for word in pair]


def dropped_neurons(dropped: Dropped, seed: int, size: int) -> np.ndarray:
    """Return which of `size` neurons are drawn anew, (size,) bool: the floor(rate * size) of the lowest hashes."""
    order = np.argsort(hash_block(mask_key(seed, 4, dropped.key), 0, size), kind="stable")
    found = np.zeros(size, bool)
    found[order[: int(size * dropped.rate)]] = True
    return found


class _Steps:
    """Give elements from steps of fixed places, so that each is computed in the same way whatever is read together."""

    def __init__(self, entry: TensorEntry, compute: str):
        self.dtype: DType = FLOAT32 if compute == "float32" else FLOAT64
        self._size = int(np.prod(entry.shape, dtype=np.int64))
        self._block, self._number = np.empty(0), -1

    def _step(self, start: int, size: int) -> np.ndarray:
        """Return the elements from `start`, a multiple of STEP, on: (size,) float64 or the dtype."""
        raise NotImplementedError

    def read(self, start: int, out: np.ndarray) -> None:
        """Fill `out`, of shape (n,), with the elements from index `start` on."""
        while out.size:
            number, first = divmod(start, STEP)
            if number != self._number:
                self._block = self._step(number * STEP, min(STEP, self._size - number * STEP))
                self._number = number
            part = self._block[first:][: out.size]
            out[: part.size] = part
            out, start = out[part.size :], start + part.size


class DrawnReader(_Steps):
    """Read a tensor that is drawn at random, or whose values are known: the ElementReader of DrawnEntry.

    compute: the dtype that it is merged in.
    """

    def __init__(self, entry: DrawnEntry, compute: str):
        super().__init__(entry, compute)
        if entry.kind == "values" and len(entry.values) != 4 * self._size:
            raise RuntimeError(f"the values of {entry.name!r} were not computed")
        self._entry, self._values = entry, np.frombuffer(entry.values, np.float32)

    def _step(self, start: int, size: int) -> np.ndarray:
        entry = self._entry
        if entry.kind == "normal":
            return entry.width * normal(entry.seed, 0, entry.key, start, size)
        if entry.kind == "uniform":
            return (2.0 * uniform(entry.seed, 0, entry.key, start, size) - 1.0) * entry.width
        return np.zeros(size) if entry.kind == "zeros" else self._values[start : start + size]


class ExpertReader(_Steps):
    """Read a matrix of an expert with its changes: the ElementReader of ExpertEntry.

    compute: the dtype that it is merged in. open_reader: returns the reader of the dense model's matrix; what it raises is
    raised, when this is made and when it reads.
    """

    def __init__(self, entry: ExpertEntry, compute: str, open_reader: Open):
        super().__init__(entry, compute)
        self._entry, self._reader = entry, open_reader(entry.source, compute)
        self._raw = np.empty(min(STEP, self._size), self._reader.dtype.raw)
        self._wide = np.empty(self._raw.size, self.dtype.raw)
        self._columns, self._axis = entry.shape[-1], entry.dropped.axis if entry.dropped is not None else 0
        self._neurons, self._mean, self._std = np.zeros(0, bool), 0.0, 0.0
        if entry.dropped is not None:
            self._neurons = dropped_neurons(entry.dropped, entry.seed, entry.shape[entry.dropped.axis])
            self._mean, self._std = self._statistics()

    def _stored(self, start: int, size: int) -> np.ndarray:
        """Return elements of the dense model's matrix, in the dtype that is merged in. The next call overwrites them."""
        raw, wide = self._raw[:size], self._wide[:size]
        self._reader.read(start, raw)
        widen(raw, self._reader.dtype, wide)
        return wide

    def _statistics(self) -> tuple[float, float]:
        """Return mean and standard deviation (with n - 1) of the elements that are drawn anew."""
        count, total, squares = 0, 0.0, 0.0
        for start in range(0, self._size, STEP):
            block = self._stored(start, min(STEP, self._size - start))
            more = draws.sum_neurons(block, start, self._columns, self._axis, self._neurons)
            count, total, squares = count + more[0], total + more[1], squares + more[2]
        if count < 2:
            return total, 0.0
        mean = total / count
        return mean, math.sqrt(max(0.0, squares - count * mean * mean) / (count - 1))

    def _step(self, start: int, size: int) -> np.ndarray:
        entry, found = self._entry, self._stored(start, size)
        if entry.dropped is not None:
            keys = _keys(entry.seed, 0, entry.key, start)
            draws.draw_neurons(found, start, self._columns, self._axis, self._neurons, self._mean, self._std, *keys)
        if entry.noise:
            draws.add_normal(found, entry.noise, *_keys(entry.seed, 1, entry.key, start))
        if entry.scale != 1:
            found *= found.dtype.type(entry.scale)
        return found
