"""Read the elements of a tensor from wherever they come: files, adapters, other rows, earlier stages of the recipe."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..backends.np_backend import NumpyBackend
from ..backends.scratch import Scratch
from ..checkpoints.files import Files
from ..checkpoints.fingerprint import Fingerprint
from ..checkpoints.tensors import Staged
from ..plan.plan import Piece, TensorPlan
from .pipeline import Pipeline

if TYPE_CHECKING:
    from ..checkpoints.tensors import TensorEntry
    from ..dtypes import DType


def reader(entry: TensorEntry, compute: str, files: Files) -> tuple[DType, Callable[[int, np.ndarray], None]]:
    """What gives a tensor's elements from an index on, and their dtype: as they are stored, or what they are merged in."""
    if entry.staged is not None:
        staged = StagedTensor(entry.staged, files)
        return staged.dtype, staged.read
    if entry.aligned is not None:
        from ..conversion.vocabulary.aligned import AlignedTensor

        aligned = AlignedTensor(entry.aligned, compute, functools.partial(reader, files=files))
        return aligned.dtype, aligned.read
    if entry.adapted is not None:
        from ..conversion.lora.adapted import AdaptedTensor  # and with it Numba

        adapted = AdaptedTensor(entry.adapted, compute, files)
        return adapted.dtype, adapted.read
    return entry.dtype, functools.partial(files.read, entry)


class FileSource:
    """From checkpoint files. keep: read everything at once if it is up to so many bytes; for a tensor that is passed over
    more than once. Takes the fingerprints of what it reads, in passing."""

    def __init__(self, tensor: TensorPlan, piece: Piece, block: int, keep: int, files: Files, scratch: Scratch):
        self._read = [reader(entry, tensor.compute, files) for entry in tensor.inputs]
        self.dtypes: Sequence[DType] = [dtype for dtype, _ in self._read]
        length = piece.stop - piece.start
        self._start, self._stop = piece.start, piece.stop
        self._fingerprints = [Fingerprint(piece.start) for _ in self.dtypes]
        self._kept = 0 < sum(length * dtype.itemsize for dtype in self.dtypes) <= keep
        size = length if self._kept else min(block, length)
        self._raw = [scratch.array(f"raw {k}", size, dtype.raw) for k, dtype in enumerate(self.dtypes)]
        if self._kept:
            for (_, read), raw, fingerprint in zip(self._read, self._raw, self._fingerprints, strict=True):
                read(piece.start, raw)
                fingerprint.add(raw, piece.start)

    def read(self, number: int, start: int, count: int) -> np.ndarray:
        if self._kept:
            return self._raw[number][start - self._start :][:count]
        raw = self._raw[number][:count]
        self._read[number][1](start, raw)
        self._fingerprints[number].add(raw, start)
        return raw

    def fingerprints(self) -> tuple[str, ...]:
        """Of each source, when all was read."""
        if any(fingerprint.stop != self._stop for fingerprint in self._fingerprints):
            raise RuntimeError("some of its inputs' elements were never read")
        return tuple(fingerprint.hexdigest() for fingerprint in self._fingerprints)

    def sample(self, number: int, clusters: int, step: int, width: int) -> np.ndarray:
        if self._kept:
            return self._raw[number][: clusters * step].reshape(clusters, step)[:, :width].reshape(-1)
        dtype, read = self._read[number]
        raw = np.empty((clusters, width), dtype.raw)
        for cluster, row in enumerate(raw):
            read(cluster * step, row)
        return raw.reshape(-1)


STEP = 1 << 16  # elements that are merged together


class StagedTensor:
    """The elements as they would be read from the earlier merge's output: rounded to its dtype.

    What its method measures is measured when this is made. Raises WorkError, as Files.read does, then and when it is read.
    """

    def __init__(self, staged: Staged, files: Files):
        plan: TensorPlan = staged.plan
        whole, backend = Piece(0, 0, plan.size), NumpyBackend(plan.compute)
        source = FileSource(plan, whole, backend.block(len(plan.sources)), 0, files, Scratch())
        self.dtype, self._size = plan.dtype, plan.size
        self._pipeline = Pipeline(plan, whole, staged.seed, source, backend, lambda _: None)
        self._backend = backend
        with backend.at_work():
            self._pipeline.prepare()
        self._block, self._number = np.empty(min(STEP, plan.size), plan.dtype.raw), -1

    def read(self, start: int, out: np.ndarray) -> None:
        """Fill out, flat, with the elements from index `start` on."""
        while len(out):
            number, first = divmod(start, STEP)
            if number != self._number:
                self._merge(number)
            part = self._block[first : min(STEP, self._size - number * STEP)][: len(out)]
            out[: len(part)] = part
            out, start = out[len(part) :], start + len(part)

    def _merge(self, number: int) -> None:
        first = number * STEP
        with self._backend.at_work():
            for stored, start in self._pipeline.merged(first, min(first + STEP, self._size)):
                self._block[start - first : start - first + len(stored)] = stored
        self._number = number
