"""Merge a large tensor in several threads of one worker, where other workers would have nothing to do in the meantime.

A tensor whose method measures it is one worker's, and may take longer than all other tensors take the other workers. Its
models are measured at the same time, and then its elements are merged in parts. Compiled loops and reads release Python's
interpreter lock, so threads suffice. The bytes are those that one thread writes: each model is measured on its own in any
case, and a part of a merge doesn't depend on where it begins.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from ..backends.engine import Engine
from ..checkpoints.fingerprint import sum_of
from ..errors import WorkError
from ..plan.tensor_plan import Piece, TensorPlan
from .job import Job, Report
from .pipeline import Measured
from .worker import Worker

STEP = 1 << 22  # elements that a thread merges at a time; a multiple of fingerprint.BLOCK
T = TypeVar("T")


def threads_of(piece: Piece, engine: Engine) -> int:
    """Return how many threads merge a piece: one where Paddle computes, which has threads of its own."""
    return min(piece.threads, engine.workers) if engine.tensor_type == "np" else 1


def merge_in_threads(threads: int, job: Job, tensor: TensorPlan, piece: Piece, progress: Callable[[int], None]) -> Report:
    """Merge and write a piece that is a whole tensor. progress: as Worker's.

    Raises WorkError naming the tensor, whatever goes wrong in any thread.
    """
    with contextlib.closing(_Threads(threads, job, progress)) as all_threads:
        measured = _measure(all_threads, tensor)
        step = STEP if tensor.scales is None else max(1, STEP // tensor.scales.unit) * tensor.scales.unit
        parts = [Piece(piece.tensor, at, min(at + step, piece.stop)) for at in range(piece.start, piece.stop, step)]
        all_threads.counted = tensor.dtype.itemsize / tensor.itemsizes  # that it is read has been counted
        reports = all_threads.each([partial(Worker.merge, tensor=tensor, piece=part, measured=measured) for part in parts])
    not_finite = {number for report in reports for number in report.not_finite}
    return Report(
        tensor.name,
        not_finite=tuple(number for number in tensor.numbers if number in not_finite),
        overflowed=any(report.overflowed for report in reports) and not not_finite,
        start=piece.start,
        stop=piece.stop,
        written=sum_of(report.written for report in reports),
        read=tuple(map(sum_of, zip(*(report.read for report in reports), strict=True))),
        scales=sum_of(report.scales for report in reports) if tensor.scales is not None else "",
    )


def _measure(all_threads: _Threads, tensor: TensorPlan) -> Measured:
    """Return what the method needs to know of the tensor: model by model at the same time, where that gives the same."""
    sparsifier, dtypes = tensor.resolved.sparsifier, {entry.dtype for entry in tensor.inputs}
    states: Sequence[Any] | None = None
    all_threads.counted = 1.0
    if sparsifier is not None and sparsifier.measures and len(dtypes) == 1 and tensor.inputs[0].dtype.itemsize < 8:
        models, base = range(len(tensor.sources)), int(tensor.base is not None)
        all_threads.counted = len(tensor.inputs) / (len(models) * (1 + base))  # the base is read with each model
        found = all_threads.each([partial(Worker.measure_model, tensor=tensor, model=model) for model in models])
        if None not in found:
            states = [state for one in found if one is not None for state in one.states]
        all_threads.counted = 0.0
    (measured,) = all_threads.each([partial(Worker.measure, tensor=tensor, states=states)])
    return measured


class _StoppedError(WorkError):
    """A thread ends because another has failed."""


class _Threads:
    """Threads with a Worker each. counted: how much each byte that they read or write counts for `progress`."""

    counted = 1.0

    def __init__(self, count: int, job: Job, progress: Callable[[int], None]):
        self._progress, self._lock, self._failed = progress, threading.Lock(), threading.Event()
        self._due = 0.0  # bytes that `progress` hasn't heard of
        self._workers = [Worker(job, self._advance) for _ in range(count)]
        self._free: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for worker in self._workers:
            self._free.put(worker)
        self._pool = ThreadPoolExecutor(count)

    def each(self, tasks: Sequence[Callable[[Worker], T]]) -> list[T]:
        """Call each task with a worker; return the results in order. Raises the error of the first that fails."""
        futures = [self._pool.submit(self._one, task) for task in tasks]
        try:
            return [future.result() for future in futures]
        except _StoppedError:  # the one that failed is a later one
            raise next(
                error for one in futures if (error := one.exception()) and not isinstance(error, _StoppedError)
            ) from None

    def close(self) -> None:
        """Wait for all threads, and close the files of their workers."""
        self._failed.set()
        self._pool.shutdown(cancel_futures=True)
        for worker in self._workers:
            worker.close()

    def _one(self, task: Callable[[Worker], T]) -> T:
        worker = self._free.get()
        try:
            if self._failed.is_set():
                raise _StoppedError("stopped")
            return task(worker)
        except BaseException:
            self._failed.set()
            raise
        finally:
            self._free.put(worker)

    def _advance(self, count: int) -> None:
        if self._failed.is_set():
            raise _StoppedError("stopped")
        with self._lock:
            self._due += count * self.counted
            whole = int(self._due)
            self._due -= whole
            self._progress(whole)
