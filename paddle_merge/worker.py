"""A worker: takes pieces of a plan, one after the other, and merges them into the output's files.

It is a process of its own, started afresh (never forked), so it inherits no framework's state and nothing of a caller's
script. It talks over one pipe: the job comes in, then piece numbers; progress, reports and errors go out.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from .blocks import Files, Road, Scratch
from .dtypes import FLOAT32
from .errors import MergeError, WorkError
from .plan import Piece, Plan, TensorPlan

PROGRESS_SECONDS = 0.1
Write = Callable[[np.ndarray, int], None]  # raw elements, and the index of the first of them in the tensor


@dataclass(frozen=True)
class Job:
    """A plan, and the paths of its shards while they are being written, in the order of plan.shards."""

    plan: Plan
    paths: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """What was noticed in one piece: the inputs (index into plan.inputs) that hold NaN or Inf; numbers too large for the
    output's dtype."""

    tensor: int
    not_finite: tuple[int, ...]
    overflowed: bool


class Worker:
    """Merges pieces. `progress` is called with numbers of bytes read for the first time, or written."""

    def __init__(self, job: Job, progress: Callable[[int], None]):
        self._plan, self._progress = job.plan, progress
        self._paths = job.paths
        self._files, self._shards, self._scratch = Files(), Files(os.O_WRONLY), Scratch()
        self._backends: dict[str, Any] = {}

    def merge(self, piece: Piece) -> Report:
        tensor = self._plan.tensors[piece.tensor]

        path = self._paths[tensor.shard]
        itemsize = tensor.dtype.itemsize

        def write(raw: np.ndarray, start: int) -> None:
            self._shards.write(path, tensor.offset + start * itemsize, raw)

        try:
            report = self._merge(tensor, piece, write) if tensor.merged else self._copy(tensor, piece, write)
            self._shards.start_writeback(path, tensor.offset + piece.start * itemsize, (piece.stop - piece.start) * itemsize)
        except MergeError:
            raise
        except OSError as error:
            name = self._plan.shards[tensor.shard].name
            raise WorkError(f"tensor {tensor.name!r}: can't write to {name} ({error.strerror})") from error
        return report

    def close(self) -> None:
        self._files.close()
        self._shards.close()

    def _backend(self, tensor: TensorPlan) -> Any:
        dtypes = [entry.dtype for entry in tensor.inputs] + [tensor.dtype]
        compute = "float64" if any(dtype.compute == FLOAT32.compute for dtype in dtypes) else "float32"
        if compute not in self._backends:
            from .backends.np_backend import NumpyBackend

            self._backends[compute] = NumpyBackend(compute)
        return self._backends[compute]

    def _merge(self, tensor: TensorPlan, piece: Piece, write: Write) -> Report:
        recipe = self._plan.recipe
        road = Road(tensor, piece, recipe, self._files, self._scratch, self._backend(tensor), self._progress)
        road.merge(write)
        return Report(piece.tensor, tuple(sorted(road.not_finite)), road.overflowed)

    def _copy(self, tensor: TensorPlan, piece: Piece, write: Write) -> Report:
        step = (1 << 20) // tensor.dtype.itemsize
        for start in range(piece.start, piece.stop, step):
            raw = np.empty(min(step, piece.stop - start), tensor.dtype.raw)
            self._files.read(tensor.inputs[-1], start, raw)
            write(raw, start)
            self._progress(raw.nbytes * (len(tensor.inputs) + 1))
        return Report(piece.tensor, (), False)


class _Throttle:
    """Adds up progress and sends it a few times a second."""

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


def serve(connection: Connection) -> None:
    """Receive a Job, then pieces until None; send ("progress", bytes), ("done", Report) and ("error", sentence, trace)."""
    throttle = _Throttle(lambda count: connection.send(("progress", count)))
    piece = None
    try:
        worker = Worker(connection.recv(), throttle)
        while (piece := connection.recv()) is not None:
            report = worker.merge(piece)
            throttle.flush()
            connection.send(("done", report))
        worker.close()
    except (EOFError, BrokenPipeError):
        return  # the parent is gone; its output will never be finished
    except MergeError as error:
        connection.send(("error", str(error), ""))
    except Exception as error:  # reported to the parent, which fails the merge
        import traceback

        connection.send(("error", f"{type(error).__name__}: {error}", traceback.format_exc()))


def main(pipe: int) -> None:
    """What the parent starts. pipe: the file descriptor of this end."""
    sys.modules.setdefault("scipy", None)  # type: ignore[arg-type]  # Numba would import it, 0.15 s, for loops we don't have
    serve(Connection(pipe))
