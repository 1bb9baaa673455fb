"""Merge pieces of a plan, one after the other, into the output's files.

Before: pool.py sends pieces to worker processes (worker_process.py). Here: a piece is read (sources.py, which reads with
os.preadv in checkpoints/files.py), merged (pipeline.py) and written (os.pwrite in output/disk.py) at TensorPlan.offset,
counted from the beginning of the output file. After: run/merge.py gathers the reports and gives the files their final names.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ..backends.engine import Engine
from ..backends.scratch import Scratch
from ..checkpoints.files import Files
from ..checkpoints.fingerprint import Fingerprint, of_elements
from ..errors import MergeError, WorkError
from ..plan.tensor_plan import Piece, TensorPlan
from .encoder import Encoder, Write
from .job import Job, Report
from .output.disk import ShardFiles, remedy
from .pipeline import Measured, Pipeline, merge_tensor
from .sources import FileSource
from .together import JoinedSource, Pieces, cut, groups, joined, suits

log = logging.getLogger("paddle_merge")
WRITEBACK = 1 << 20  # bytes of a piece whose way to the disk begins as soon as it is written
OUT_OF_MEMORY = "out of memory; try a smaller --n_process, and on a GPU --device low_gpu_mem"


class Backends:
    """The engine's backends, one per compute dtype, made when first used."""

    def __init__(self, engine: Engine):
        self._engine, self._made = engine, dict[str, Any]()

    def of(self, tensor: TensorPlan) -> Any:
        if tensor.compute not in self._made:
            self._made[tensor.compute] = self._engine.backend(tensor.compute)
        return self._made[tensor.compute]


class Worker:
    """Merges pieces. progress: is called with the number of bytes that were read for the first time, or written."""

    def __init__(self, job: Job, progress: Callable[[int], None]):
        self._paths, self._progress = job.paths, progress
        self._files, self._shards, self._scratch = Files(panel=job.engine.budget.panel), ShardFiles(), Scratch()
        self._backends = Backends(job.engine)
        self._resident = job.engine.budget.resident
        self._together = job.engine.budget.together

    def merge_all(self, pieces: Iterable[tuple[TensorPlan, Piece]]) -> Iterator[Report]:
        """Merge pieces as `merge` does, small ones together where that can be; yield the report of each, in order."""
        for group in groups(pieces, self._together):
            reports = self._merge_together(group) if len(group) > 1 and self._together else None
            yield from [self.merge(*one) for one in group] if reports is None else reports

    def _merge_together(self, group: Pieces) -> list[Report] | None:
        """Merge pieces as one. Returns None, and writes nothing, if there is a NaN or Inf, or if anything goes wrong whose
        message doesn't name a tensor: then each is to be merged by itself. What goes wrong, other than for lack of memory,
        is told, and this worker merges nothing together from then on."""
        first, one = group[0][0], joined(group)
        try:
            backend, source = self._backends.of(first), JoinedSource(group, self._files, self._scratch)
            if not suits(one, backend):
                return None
            with backend.at_work():
                merging = merge_tensor(one, source, backend)
                ((stored, _),) = merging.merged()
                raw = backend.fetch(stored)()
        except MergeError:
            raise
        except MemoryError:  # one takes less
            return None
        except Exception as error:
            self._together = 0
            these = f"those from {first.name!r} to {group[-1][0].name!r}"
            why = f"{type(error).__name__}: {error}"
            log.warning("small tensors are merged one by one, since %s failed together: %s", these, why)
            return None
        if not merging.all_finite or merging.overflowed:
            return None
        reports = []
        for (tensor, piece), read, part in zip(group, zip(*source.fingerprints, strict=True), cut(group, raw), strict=True):
            with _Naming(tensor):
                if self._paths is not None:
                    self._write(tensor, self._paths[tensor.shard], tensor.offset + piece.start * tensor.dtype.itemsize, part)
                written, peak = of_elements(part, piece.start), backend.peak()
            reports.append(
                Report(tensor.name, (), False, peak, start=piece.start, stop=piece.stop, written=written, read=read)
            )
        self._progress(sum((piece.stop - piece.start) * tensor.itemsizes for tensor, piece in group))
        return reports

    def merge(self, tensor: TensorPlan, piece: Piece, measured: Measured | None = None) -> Report:
        """Merge a piece of a tensor and write it. Raises WorkError naming the tensor, whatever goes wrong.

        measured: what was measured of the whole tensor; None: the method measures nothing, or the piece is the whole tensor.
        """
        path = self._paths[tensor.shard] if self._paths is not None else None
        itemsize, written, of_scales = tensor.dtype.itemsize, Fingerprint(piece.start), None
        write = self._writer(tensor, path, tensor.offset, itemsize, written)

        with _Naming(tensor):
            if (scales := tensor.scales) is not None:
                of_scales = Fingerprint(scales.first(piece.start), scales.hashed)
                write_scales = self._writer(tensor, path, scales.offset, scales.dtype.itemsize, of_scales)
                write = Encoder(tensor, piece, write, write_scales, self._scratch).add
            found = self._merge(tensor, piece, measured, write) if tensor.merged else self._copy(tensor, piece, write)
            nbytes = (piece.stop - piece.start) * itemsize
            if path is not None and nbytes >= WRITEBACK:  # pages of smaller ones would be written several times
                self._shards.start_writeback(path, tensor.offset + piece.start * itemsize, nbytes)
        return Report(
            tensor.name,
            start=piece.start,
            stop=piece.stop,
            written=written.hexdigest(),
            scales=of_scales.hexdigest() if of_scales is not None else "",
            **found,
        )

    def _writer(self, tensor: TensorPlan, path: str | None, offset: int, itemsize: int, written: Fingerprint) -> Write:
        """Return what writes elements of `itemsize` bytes to a file, and adds them to a fingerprint. path: None: nowhere.
        offset: of the first element in the file."""

        def write(raw: np.ndarray, start: int) -> None:
            written.add(raw, start)
            if path is not None:
                self._write(tensor, path, offset + start * itemsize, raw)

        return write

    def _write(self, tensor: TensorPlan, path: str, offset: int, raw: np.ndarray) -> None:
        """Write elements of a tensor at byte `offset` of a file. Raises WorkError."""
        try:
            self._shards.write(path, offset, raw)
        except OSError as error:
            problem = f"can't write to {os.path.basename(path)} ({error.strerror}){remedy(error, path)}"
            raise WorkError(f"tensor {tensor.name!r}: {problem}") from error

    def measure(self, tensor: TensorPlan, states: Sequence[Any] | None = None) -> Measured:
        """Measure a whole tensor. states: what was measured of each model; None: measure that, too. Raises WorkError as
        `merge` does."""
        with _Naming(tensor):
            backend = self._backends.of(tensor)
            source = FileSource(tensor, backend, self._files, scratch=self._scratch)
            with backend.at_work():
                return Pipeline(tensor, source, backend, Piece(0, 0, tensor.size), self._progress).measure(states)

    def measure_model(self, tensor: TensorPlan, model: int) -> Measured | None:
        """Measure one model of a tensor for the sparsifier; return its state alone, or None if it or the base holds a NaN or
        Inf: what those count for depends on the other models.

        For tensors of which all inputs are stored in one dtype. Raises WorkError as `merge` does.
        """
        sparsifier = tensor.resolved.sparsifier
        assert sparsifier is not None
        numbers = tensor.numbers[model], *tensor.numbers[len(tensor.sources) :]
        one = dataclasses.replace(tensor, sources=(tensor.sources[model],), numbers=numbers)
        with _Naming(tensor):
            backend = self._backends.of(one)
            source = FileSource(one, backend, self._files, scratch=self._scratch)
            pipeline = Pipeline(one, source, backend, Piece(0, 0, one.size), self._progress)
            pipeline.first = model
            with backend.at_work():
                states = sparsifier.of_models([model]).prepare(pipeline, backend)
            return Measured(states, None) if pipeline.all_finite else None

    def close(self) -> None:
        self._files.close()
        self._shards.close()

    def _merge(self, tensor: TensorPlan, piece: Piece, measured: Measured | None, write: Write) -> dict[str, Any]:
        """Merge a piece; return fields of its Report."""
        backend = self._backends.of(tensor)
        keep = self._resident if tensor.resolved.measures and measured is None else 0
        source = FileSource(tensor, backend, self._files, piece=piece, keep=keep, scratch=self._scratch)
        coming: deque[tuple[Callable[[], np.ndarray], int]] = deque()  # blocks on their way back from the device
        with backend.at_work():
            merging = merge_tensor(tensor, source, backend, piece=piece, progress=self._progress, measured=measured)
            for stored, start in merging.merged():
                coming.append((backend.fetch(stored), start))
                if len(coming) > backend.ahead:
                    arrived, first = coming.popleft()
                    write(arrived(), first)
            for arrived, first in coming:
                write(arrived(), first)
            peak = backend.peak()
        return {
            "not_finite": merging.not_finite,
            "overflowed": merging.overflowed,
            "device_memory": peak,
            "read": source.fingerprints(),
        }

    def _copy(self, tensor: TensorPlan, piece: Piece, write: Write) -> dict[str, Any]:
        """Copy a piece; return fields of its Report."""
        step = (1 << 20) // tensor.dtype.itemsize
        read = [Fingerprint(piece.start) for _ in tensor.inputs]
        for start in range(piece.start, piece.stop, step):
            raw = np.empty(min(step, piece.stop - start), tensor.dtype.raw)
            for entry, one in zip(tensor.inputs, read, strict=True):  # the plan found them equal
                self._files.read(entry, start, raw)
                one.add(raw, start)
            write(raw, start)
            self._progress(raw.nbytes * (len(tensor.inputs) + 1))
        return {"read": tuple(fingerprint.hexdigest() for fingerprint in read)}


class _Naming:
    """Make a WorkError that names the tensor of whatever goes wrong."""

    def __init__(self, tensor: TensorPlan):
        self._tensor = tensor

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, MemoryError):
            raise WorkError(f"tensor {self._tensor.name!r}: {OUT_OF_MEMORY}") from None
        # Any error fails the merge, with the name of the tensor.
        if isinstance(error, Exception) and not isinstance(error, MergeError):
            raise WorkError(f"tensor {self._tensor.name!r}: {type(error).__name__}: {error}") from error
