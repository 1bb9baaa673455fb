"""Read the elements of a tensor's inputs from wherever they come from.

`reader` chooses the reader of a TensorEntry: of stored tensors, quantised ones, tensors with adapters, tensors with
aligned rows, or with rows that are made of others, with experts in another order, of a mixture of experts, and tensors of an
earlier stage of the recipe, which are merged when they are read.

Before: plan/tensor_plan.py says which entries a tensor is made of. After: pipeline.py merges what FileSource gives.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from ..backends.backend import Backend
from ..backends.scratch import Scratch
from ..checkpoints.files import Files
from ..checkpoints.fingerprint import Fingerprint
from ..checkpoints.scaled import ScaledEntry
from ..checkpoints.tensors import ElementReader, StoredEntry, TensorEntry
from ..conversion import readers
from ..conversion.lora.entry import AdaptedEntry
from ..conversion.mixture.entry import DrawnEntry, ExpertEntry
from ..conversion.moe.entry import ReorderedEntry
from ..conversion.moe.reordered import ReorderedReader
from ..conversion.vocabulary.entry import AlignedEntry, CompletedEntry
from ..dtypes import DType
from ..plan.tensor_plan import Piece, StagedEntry, TensorPlan
from .pipeline import merge_tensor


def reader(entry: TensorEntry, compute: str, files: Files) -> ElementReader:
    """Return the reader of a tensor. compute: the dtype that it is merged in, "float32" or "float64".

    Raises WorkError, as Files.read does, where something has to be read first.
    """
    match entry:
        case StoredEntry() | ScaledEntry() | AdaptedEntry():
            return readers.reader(entry, compute, files)
        case ReorderedEntry():
            return ReorderedReader(entry, functools.partial(reader, compute=compute, files=files))
        case AlignedEntry():
            from ..conversion.vocabulary.aligned import AlignedReader  # planning does without

            return AlignedReader(entry, compute, functools.partial(reader, files=files))
        case CompletedEntry():
            from ..conversion.vocabulary.completed import CompletedReader  # planning does without

            return CompletedReader(entry, compute, functools.partial(reader, files=files))
        case DrawnEntry():
            from ..conversion.mixture.drawing import DrawnReader  # planning does without

            return DrawnReader(entry, compute)
        case ExpertEntry():
            from ..conversion.mixture.drawing import ExpertReader  # planning does without

            return ExpertReader(entry, compute, functools.partial(reader, files=files))
        case StagedEntry():
            return StagedReader(entry, files)
    raise TypeError(f"no reader for a {type(entry).__name__}")


class FileSource:
    """Gives the elements of a tensor's inputs from checkpoint files, and takes the fingerprints of what it reads.

    piece: the elements that will be read; None: all.
    keep: read everything at once if it is up to so many bytes; for a tensor that is read more than once.
    scratch: memory that is used again for the next tensor.
    fingerprints: whether to take them.
    """

    def __init__(
        self,
        tensor: TensorPlan,
        backend: Backend,
        files: Files,
        *,
        piece: Piece | None = None,
        keep: int = 0,
        scratch: Scratch | None = None,
        fingerprints: bool = True,
    ):
        piece, scratch = piece or Piece(0, 0, tensor.size), scratch or Scratch()
        block = backend.block(len(tensor.sources))
        self._readers = [reader(entry, tensor.compute, files) for entry in tensor.inputs]
        self.dtypes: Sequence[DType] = [one.dtype for one in self._readers]
        length = piece.stop - piece.start
        self._start, self._stop = piece.start, piece.stop
        self._fingerprints = [Fingerprint(piece.start) for _ in self.dtypes] if fingerprints else []
        self._kept = 0 < sum(length * dtype.itemsize for dtype in self.dtypes) <= keep
        size = length if self._kept else min(block, length)
        self._raw = [scratch.array(f"raw {k}", size, dtype.raw) for k, dtype in enumerate(self.dtypes)]
        if self._kept:
            for one, raw in zip(self._readers, self._raw, strict=True):
                one.read(piece.start, raw)
            for fingerprint, raw in zip(self._fingerprints, self._raw, strict=False):  # none, if they aren't taken
                fingerprint.add(raw, piece.start)

    def read(self, number: int, start: int, count: int) -> np.ndarray:
        if self._kept:
            return self._raw[number][start - self._start :][:count]
        raw = self._raw[number][:count]
        self._readers[number].read(start, raw)
        if self._fingerprints:
            self._fingerprints[number].add(raw, start)
        return raw

    def fingerprints(self) -> tuple[str, ...]:
        """Return the fingerprint of each input, once all its elements were read; nothing if they aren't taken."""
        if any(fingerprint.stop != self._stop for fingerprint in self._fingerprints):
            raise RuntimeError("some of its inputs' elements were never read")
        return tuple(fingerprint.hexdigest() for fingerprint in self._fingerprints)

    def sample(self, number: int, clusters: int, step: int, width: int) -> np.ndarray:
        if self._kept:
            return self._raw[number][: clusters * step].reshape(clusters, step)[:, :width].reshape(-1)
        raw = np.empty((clusters, width), self.dtypes[number].raw)
        for cluster, row in enumerate(raw):
            self._readers[number].read(cluster * step, row)
        return raw.reshape(-1)


STEP = 1 << 16  # elements of an earlier merge that are merged together


class StagedReader:
    """Reads a tensor of an earlier merge as it would be read from that merge's output: rounded to its dtype.

    What the method measures is measured when this is made. Raises WorkError, as Files.read does, then and when it reads.
    """

    def __init__(self, entry: StagedEntry, files: Files):
        from ..backends.np_backend import NumpyBackend  # planning does without

        plan, self._backend = entry.plan, NumpyBackend(entry.plan.compute)
        self.dtype, self._size = plan.dtype, plan.size
        with self._backend.at_work():
            self._merging = merge_tensor(plan, FileSource(plan, self._backend, files), self._backend)
        self._block, self._number = np.empty(min(STEP, plan.size), plan.dtype.raw), -1

    def read(self, start: int, out: np.ndarray) -> None:
        """Fill out, flat, with the elements from index `start` on. Raises WorkError."""
        while len(out):
            number, first = divmod(start, STEP)
            if number != self._number:
                self._merge(number)
            part = self._block[first : min(STEP, self._size - number * STEP)][: len(out)]
            out[: len(part)] = part
            out, start = out[len(part) :], start + len(part)

    def _merge(self, number: int) -> None:
        """Merge the elements of step `number` into the block."""
        first = number * STEP
        with self._backend.at_work():
            for stored, start in self._merging.merged(first, min(first + STEP, self._size)):
                self._block[start - first : start - first + len(stored)] = stored
        self._number = number
