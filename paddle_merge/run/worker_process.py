"""Run a worker process: receive pieces from the command over a pipe, have them merged, and send reports back.

Before: pool.py has a process forked and sends it pieces. Here: one pipe, over which the job and then pieces come in, and
progress, reports and errors go out. After: worker.py merges a piece; large_tensor.py one that is merged in several threads.

The process is forked by one that was started for this (fork_server.py), so it inherits no state of a framework or of the
caller's script.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection

from ..backends.engine import Engine
from ..errors import MergeError, WorkError
from ..plan.tensor_plan import Piece, TensorPlan
from .job import Report
from .large_tensor import merge_in_threads, threads_of
from .worker import OUT_OF_MEMORY, Worker

PROGRESS_SECONDS = 0.1


class _Throttle:
    """Adds up progress, and sends it a few times a second: `take` gives what is left. held: whether to send none for now,
    because the command may be sending the next batch."""

    held = False

    def __init__(self, send: Callable[[int], None]):
        self._send, self._bytes, self._last = send, 0, time.monotonic()

    def __call__(self, count: int) -> None:
        self._bytes += count
        now = time.monotonic()
        if not self.held and now - self._last >= PROGRESS_SECONDS:
            self._send(self.take())
            self._last = now

    def take(self) -> int:
        count, self._bytes = self._bytes, 0
        return count


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
    batch, ("done", Report of each piece, bytes, whether it is ready for the next batch) and ("error", sentence, traceback).

    The batch that follows small pieces is asked for before they are merged. From then on nothing is sent until it has been
    received: so the worker doesn't wait for the command, and never do both wait for the other to read, however long
    messages are.
    """
    throttle = _Throttle(lambda count: connection.send(("progress", count)))
    try:
        _serve(connection, throttle)
    except (EOFError, OSError):
        return  # the parent has ended, so the output will never be finished
    except MemoryError:
        _fail(connection, throttle, OUT_OF_MEMORY)
    except MergeError as error:
        _fail(connection, throttle, str(error))


def _serve(connection: Connection, throttle: _Throttle) -> None:
    job = connection.recv()
    _settle(job.engine)
    worker = Worker(job, throttle)

    def merged(tensor: TensorPlan, piece: Piece) -> Report:
        threads = threads_of(piece, job.engine)
        if threads > 1:
            return merge_in_threads(threads, job, tensor, piece, throttle)
        return worker.merge(tensor, piece)

    batch, asked = connection.recv(), False  # whether the batch after this one was asked for
    while batch is not None:
        early = len(batch) > 1  # only small pieces are sent together
        if early and not asked:
            connection.send(("ready",))
        throttle.held = early
        reports = list(worker.merge_all(batch)) if early else [merged(*one) for one in batch]
        if early:
            batch = connection.recv()
            throttle.held = False
        asked = not early or (batch is not None and len(batch) > 1)
        connection.send(("done", reports, throttle.take(), asked))
        if not early:
            batch, asked = connection.recv(), False
    worker.close()


def _fail(connection: Connection, throttle: _Throttle, sentence: str) -> None:
    """Send an error, in its handler; before it the batch that was asked for is received."""
    with contextlib.suppress(EOFError, OSError):
        if throttle.held:
            connection.recv()
        connection.send(("error", sentence, traceback.format_exc()))


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
