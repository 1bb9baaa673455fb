"""Merge pieces of a plan, one after the other, into the output's files.

Before: pool.py starts workers and sends them pieces. Here: a piece is read (sources.py, which reads with os.preadv in
checkpoints/files.py), merged (pipeline.py) and written (os.pwrite in output/disk.py) at TensorPlan.offset, counted from the
beginning of the output file. After: run/merge.py gathers the reports and gives the files their final names.

A worker is a process of its own, forked by one that was started for this (fork_server.py), so it inherits no state of a
framework or of the caller's script. It uses one pipe: the job and then pieces come in; progress, reports and errors go out.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from ..backends.engine import Engine
from ..backends.scratch import Scratch
from ..checkpoints.files import Files
from ..checkpoints.fingerprint import Fingerprint
from ..errors import MergeError, WorkError
from ..plan.tensor_plan import Piece, TensorPlan
from .job import Job, Report
from .output.disk import ShardFiles, remedy
from .pipeline import merge_tensor
from .sources import FileSource

log = logging.getLogger("paddle_merge")
WRITEBACK = 1 << 20  # bytes of a piece whose way to the disk begins as soon as it is written
PROGRESS_SECONDS = 0.1
OUT_OF_MEMORY = "out of memory; try a smaller --n_process, and on a GPU --device low_gpu_mem"
Write = Callable[[np.ndarray, int], None]  # raw elements, and the index of the first of them in the tensor


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

    def merge(self, tensor: TensorPlan, piece: Piece) -> Report:
        """Merge a piece of a tensor and write it. Raises WorkError naming the tensor, whatever goes wrong."""
        path = self._paths[tensor.shard] if self._paths is not None else None
        itemsize, written = tensor.dtype.itemsize, Fingerprint(piece.start)

        def write(raw: np.ndarray, start: int) -> None:
            written.add(raw, start)
            try:
                if path is not None:
                    self._shards.write(path, tensor.offset + start * itemsize, raw)
            except OSError as error:
                problem = f"can't write to {os.path.basename(path or '')} ({error.strerror}){remedy(error, path or '')}"
                raise WorkError(f"tensor {tensor.name!r}: {problem}") from error

        try:
            found = self._merge(tensor, piece, write) if tensor.merged else self._copy(tensor, piece, write)
            nbytes = (piece.stop - piece.start) * itemsize
            if path is not None and nbytes >= WRITEBACK:  # pages of smaller ones would be written several times
                self._shards.start_writeback(path, tensor.offset + piece.start * itemsize, nbytes)
        except MergeError:
            raise
        except MemoryError:
            raise WorkError(f"tensor {tensor.name!r}: {OUT_OF_MEMORY}") from None
        except Exception as error:  # any error fails the merge, with the name of the tensor
            raise WorkError(f"tensor {tensor.name!r}: {type(error).__name__}: {error}") from error
        return Report(tensor.name, start=piece.start, stop=piece.stop, written=written.hexdigest(), **found)

    def close(self) -> None:
        self._files.close()
        self._shards.close()

    def _merge(self, tensor: TensorPlan, piece: Piece, write: Write) -> dict[str, Any]:
        """Merge a piece; return fields of its Report."""
        backend = self._backends.of(tensor)
        keep = self._resident if tensor.resolved.measures else 0
        source = FileSource(tensor, backend, self._files, piece=piece, keep=keep, scratch=self._scratch)
        coming: deque[tuple[Callable[[], np.ndarray], int]] = deque()  # blocks on their way back from the device
        with backend.at_work():
            merging = merge_tensor(tensor, source, backend, piece=piece, progress=self._progress)
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
            for entry, fingerprint in zip(tensor.inputs, read, strict=True):  # the plan found them equal
                self._files.read(entry, start, raw)
                fingerprint.add(raw, start)
            write(raw, start)
            self._progress(raw.nbytes * (len(tensor.inputs) + 1))
        return {"read": tuple(fingerprint.hexdigest() for fingerprint in read)}


class _Throttle:
    """Adds up progress, and sends it a few times a second."""

    def __init__(self, send: Callable[[int], None]):
        self._send, self._bytes, self._last = send, 0, time.monotonic()

    def __call__(self, count: int) -> None:
        self._bytes += count
        now = time.monotonic()
        if now - self._last >= PROGRESS_SECONDS:
            self.flush()
            self._last = now

    def flush(self) -> None:
        if self._bytes:
            self._send(self._bytes)
            self._bytes = 0


def _settle(engine: Engine) -> None:
    """Start the framework that computes. Raises WorkError, whatever goes wrong there."""
    try:
        engine.settle()
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise WorkError(
            f"--tensor_type {engine.tensor_type} --device {engine.device}: can't be used here ({reason})"
        ) from error


def serve(connection: Connection) -> None:
    """Receive a Job, then batches, lists of (tensor, piece), until None; send ("progress", bytes), ("ready",) for the next
    batch, ("done", Report of each piece) and ("error", sentence, traceback).

    The batch that follows small pieces is asked for before they are merged, and received before their reports are sent:
    so neither the worker nor the command waits for the other, however long messages are.
    """
    throttle = _Throttle(lambda count: connection.send(("progress", count)))
    try:
        job = connection.recv()
        _settle(job.engine)
        worker = Worker(job, throttle)
        batch = connection.recv()
        while batch is not None:
            early = len(batch) > 1  # only small pieces are sent together
            if early:
                connection.send(("ready",))
            reports = [worker.merge(tensor, piece) for tensor, piece in batch]
            throttle.flush()
            batch = connection.recv() if early else None
            connection.send(("done", reports))
            if not early:
                connection.send(("ready",))
                batch = connection.recv()
        worker.close()
    except (EOFError, OSError):
        return  # the parent has ended, so the output will never be finished
    except MemoryError:
        with contextlib.suppress(OSError):
            connection.send(("error", OUT_OF_MEMORY, traceback.format_exc()))
    except MergeError as error:
        with contextlib.suppress(OSError):
            connection.send(("error", str(error), traceback.format_exc()))


def main(connection: Connection) -> None:
    """Run as a worker process, forked by fork_server.py. connection: this end."""
    threading.Thread(target=_end_with_parent, args=(connection.fileno(),), daemon=True).start()
    serve(connection)


def _end_with_parent(pipe: int) -> None:
    """End this process when its parent dies, however that happens: another merge may begin to write into the same folder."""
    ends = select.poll()
    ends.register(pipe, 0)  # a hang-up is reported unasked
    ends.poll()
    os._exit(1)
