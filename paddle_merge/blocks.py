"""One tensor's road, block by block: read, widen, take the task vector, sparsify, merge, add the base, round, write.

A block of all models stays in the second-level cache while every step runs over it, so a tensor of any size merges in the
same few megabytes.
"""

from __future__ import annotations

import os
import resource
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import WorkError
from .readers import TensorEntry

if TYPE_CHECKING:
    from .backends.np_backend import NumpyBackend
    from .plan import Piece, TensorPlan
    from .recipe import Recipe

BLOCK = 1 << 16  # elements per model; a power of two and a multiple of kernels.CHUNK
RESIDENT = 64 << 20  # a measured tensor up to this many bytes, all sources together, is read once and kept
OPEN_FILES = 256
SAMPLE_WIDTH = 16  # neighbouring elements sampled together
_INTERPRETER = 150 << 20  # Python with NumPy and Numba, measured


def worker_memory(models: int, recipe: Recipe, alone: bool) -> int:
    """An upper estimate of one worker's resident bytes. alone: the merging happens in the command's own process."""
    scratch = (models + 3) * BLOCK * 16
    measuring = RESIDENT + models * (12 << 20) if recipe.measures else 0
    return (_INTERPRETER if not alone else 110 << 20) + scratch + measuring


class Files:
    """Files by path, opened when first used and kept open, the least used closed when there are many."""

    def __init__(self, flags: int = os.O_RDONLY) -> None:
        self._flags = flags
        self._limit = max(8, min(OPEN_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))
        self._open: OrderedDict[str, int] = OrderedDict()

    def read(self, entry: TensorEntry, start: int, out: np.ndarray) -> None:
        """Fill out, C-contiguous in the entry's raw dtype, with the elements from index `start` on. Raises WorkError."""
        offset = entry.offset + start * entry.dtype.itemsize
        view = out.view(np.uint8).data
        try:
            file = self._file(entry.file)
            while view:
                count = os.preadv(file, [view], offset)
                if count == 0:
                    raise WorkError(f"{entry.file}: ends before tensor {entry.name!r} does; was it changed while merging?")
                view, offset = view[count:], offset + count
        except OSError as error:
            raise WorkError(f"{entry.file}: can't read tensor {entry.name!r} ({error.strerror})") from None

    def write(self, path: str, offset: int, raw: np.ndarray) -> None:
        """Write all of raw, C-contiguous, at `offset` of the existing file. Raises OSError."""
        file, view = self._file(path), raw.view(np.uint8).data
        while view:
            count = os.pwrite(file, view, offset)
            view, offset = view[count:], offset + count

    def start_writeback(self, path: str, offset: int, length: int) -> None:
        """Let the disk begin while the next piece is computed, so that little is left for fsync to wait for.

        On Linux DONTNEED starts writing dirty pages back, and drops only those that were already on disk.
        """
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file(path), offset, length, os.POSIX_FADV_DONTNEED)

    def _file(self, path: str) -> int:
        if path in self._open:
            self._open.move_to_end(path)
        else:
            if len(self._open) >= self._limit:
                os.close(self._open.popitem(last=False)[1])
            self._open[path] = os.open(path, self._flags)
        return self._open[path]

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])


class Scratch:
    """Memory that is used again from tensor to tensor, one buffer per purpose, each as large as was ever needed."""

    def __init__(self) -> None:
        self._buffers: dict[str, np.ndarray] = {}

    def array(self, purpose: str, size: int, dtype: Any) -> np.ndarray:
        """(size,) of dtype, contents undefined; overlaps what this purpose was given before."""
        nbytes = size * np.dtype(dtype).itemsize
        if purpose not in self._buffers or self._buffers[purpose].nbytes < nbytes:
            self._buffers[purpose] = np.empty(nbytes, np.uint8)
        return self._buffers[purpose][:nbytes].view(dtype)


class Road:
    """The elements start..stop of one tensor in all models, as methods see them (methods.Tensor) and as they are written.

    not_finite: the sources (models in order, then the base) in which a NaN or Inf was met. overflowed: whether a finite
    input led to a number that the output's dtype can't hold.
    """

    def __init__(
        self,
        tensor: TensorPlan,
        piece: Piece,
        recipe: Recipe,
        files: Files,
        scratch: Scratch,
        backend: NumpyBackend,
        progress: Callable[[int], None],
    ):
        self.name, self.size = tensor.name, tensor.size
        self.models, self.seed = len(tensor.sources), recipe.seed
        self.narrow = all(entry.dtype.itemsize < 8 for entry in tensor.inputs)
        self.not_finite: set[int] = set()
        self.overflowed = False
        self._tensor, self._piece, self._recipe = tensor, piece, recipe
        self._files, self._backend, self._progress = files, backend, progress
        self._states: Sequence[Any] = ()
        self._counted = False  # whether the bytes read have been reported as progress

        entries = tensor.inputs
        length = piece.stop - piece.start
        block = min(BLOCK, length)
        kept = recipe.measures and sum(length * entry.dtype.itemsize for entry in entries) <= RESIDENT
        self._kept = kept
        self._raw = [
            scratch.array(f"raw {number}", length if kept else block, entry.dtype.raw)
            for number, entry in enumerate(entries)
        ]
        if kept:
            for entry, raw in zip(entries, self._raw, strict=True):
                files.read(entry, piece.start, raw)
        self._x = scratch.array("x", self.models * block, backend.dtype)
        self._base = scratch.array("base", block, backend.dtype) if tensor.base is not None else None
        self._out = scratch.array("out", block, tensor.dtype.raw)

    # --- what methods may ask for while they measure

    def deltas(self) -> Iterator[tuple[int, Any]]:
        for start, x, _ in self._blocks():
            yield start, x

    def sparsified(self) -> Iterator[tuple[int, Any]]:
        for start, x, _ in self._blocks():
            self._sparsify(start, x)
            yield start, x

    def sample(self, count: int) -> np.ndarray:
        """(models, clusters, SAMPLE_WIDTH) in compute dtype: about `count` elements of each model, evenly spread."""
        clusters = max(1, min(count, self.size) // SAMPLE_WIDTH)
        step = self.size // clusters
        width = min(SAMPLE_WIDTH, step)
        rows = self._backend.empty(len(self._raw), clusters * width)
        for source, entry in self._base_first():
            if self._kept:
                raw = np.ascontiguousarray(self._raw[source][: clusters * step].reshape(clusters, step)[:, :width])
            else:
                raw = np.empty((clusters, width), entry.dtype.raw)
                for number in range(clusters):
                    self._files.read(entry, number * step, raw[number])
            base = rows[-1] if self._base is not None and source < self.models else None
            self._backend.load(raw.reshape(-1), entry.dtype, rows[source], base)
        return rows[: self.models].reshape(self.models, clusters, width)

    # --- the merge

    def merge(self, write: Callable[[np.ndarray, int], None]) -> None:
        """Measure what the method needs, then merge; `write` takes raw elements and the index of the first."""
        recipe, backend = self._recipe, self._backend
        if recipe.sparsifier is not None:
            self._states = recipe.sparsifier.prepare(self, backend)
        state = recipe.merger.prepare(self, backend)
        for start, x, base in self._blocks():
            self._sparsify(start, x)
            merged = recipe.merger.apply(x, state, backend)
            if base is not None:
                merged = backend.add_scaled(base, merged, recipe.scale)
            raw = self._out[: merged.shape[0]]
            if backend.store(merged, raw, self._tensor.dtype) and not self.not_finite:
                self.overflowed = True
            write(raw, start)
            self._progress(raw.nbytes)

    def _blocks(self) -> Iterator[tuple[int, Any, Any]]:
        """(start, x (models, n), base (n,) or None): task vectors, or weights if there is no base, in shared memory."""
        for start in range(self._piece.start, self._piece.stop, BLOCK):
            count = min(BLOCK, self._piece.stop - start)
            x = self._x[: self.models * count].reshape(self.models, count)
            base = None if self._base is None else self._base[:count]
            for source, entry in self._base_first():
                raw = self._read(source, entry, start, count)
                if source == self.models:
                    assert base is not None
                    bad = self._backend.load(raw, entry.dtype, base)
                else:
                    bad = self._backend.load(raw, entry.dtype, x[source], base)
                if bad:
                    self.not_finite.add(source)
            yield start, x, base
        self._counted = True

    def _base_first(self) -> Iterator[tuple[int, TensorEntry]]:
        """(number, entry) of the sources, in the order in which they must be loaded to subtract the base."""
        entries = self._tensor.inputs
        return ((number % len(entries), entries[number % len(entries)]) for number in range(-1, len(entries) - 1))

    def _read(self, source: int, entry: TensorEntry, start: int, count: int) -> np.ndarray:
        if self._kept:
            raw = self._raw[source][start - self._piece.start :][:count]
        else:
            raw = self._raw[source][:count]
            self._files.read(entry, start, raw)
        if not self._counted:
            self._progress(raw.nbytes)
        return raw

    def _sparsify(self, start: int, x: Any) -> None:
        if self._recipe.sparsifier is not None:
            for row, state in zip(x, self._states, strict=True):
                self._recipe.sparsifier.apply(row, start, state, self._backend)
