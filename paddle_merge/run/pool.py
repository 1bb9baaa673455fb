"""Run worker processes: start them, send them pieces, receive their reports, and notice when one dies."""

from __future__ import annotations

import dataclasses
import logging
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any

from ..errors import WorkError
from ..plan.plan import Piece, Plan
from .job import Job, Report
from .output.flock import FolderLock
from .ranks import Ranks
from .worker import Worker

log = logging.getLogger("paddle_merge")


def work(
    plan: Plan, job: Job, progress: bool | None, ranks: Ranks, lock: FolderLock | None = None, doing: str = "merging"
) -> Iterator[Report]:
    """Merge this rank's share of the pieces, in this process or in workers; yield a report for each piece.

    progress: whether to show a progress bar; None: if standard error is a terminal. lock: of the output folder; workers hold
    it, too. doing: the title of the progress bar.
    """
    from tqdm import tqdm

    pieces = plan.share(ranks.number, ranks.count)
    quiet = not log.isEnabledFor(logging.INFO) or ranks.number > 0
    disable = quiet or (not sys.stderr.isatty() if progress is None else not progress)
    total = sum(plan.traffic(piece) for piece in pieces)
    with tqdm(total=total, unit="B", unit_scale=True, desc=doing, disable=disable) as bar:
        if plan.n_process == ranks.count == 1 and job.engine.tensor_type == "np":
            yield from _work_here(plan, job, bar.update)
            return
        with WorkerPool(plan, pieces, job, lock) as pool:
            yield from pool.work(bar.update, ranks)


def _work_here(plan: Plan, job: Job, progress: Callable[[int], Any]) -> Iterator[Report]:
    worker = Worker(job, progress)
    try:
        for piece in plan.pieces:
            yield worker.merge(plan.tensors[piece.tensor], piece)
    finally:
        worker.close()


class WorkerPool:
    """Worker processes, which hold the lock of the output folder, too. Leaving the context kills those that still run."""

    def __init__(self, plan: Plan, pieces: Sequence[Piece], job: Job, lock: FolderLock | None = None):
        self._inherited = [lock.file] if lock is not None and lock.file is not None else []
        count = min(plan.n_process, len(pieces))
        self._plan, self._pieces, self._job = plan, pieces, job
        self._processes: dict[Connection, subprocess.Popen[bytes]] = {}
        self._doing: dict[Connection, Piece] = {}
        try:
            for _ in range(count):
                self._start()
        except BaseException as error:
            self.__exit__()
            if not isinstance(error, OSError):
                raise
            raise WorkError(f"can't start {count} workers ({error.strerror}); try a smaller --n_process") from None

    def _start(self) -> None:
        """Start one worker, with this process's import path and in a session of its own: this process handles Ctrl-C."""
        ours, theirs = Pipe()
        code = (
            "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL);"  # a signal sent to a worker ends it
            f" sys.path[:] = {sys.path!r}; from paddle_merge.run.worker import main; main({theirs.fileno()})"
        )
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-c", code],
                pass_fds=[theirs.fileno(), *self._inherited],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._processes[ours] = process

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: Any) -> None:
        for connection, process in self._processes.items():
            connection.close()
            process.kill()
        for process in self._processes.values():
            process.wait()

    def work(self, progress: Callable[[int], Any], ranks: Ranks) -> Iterator[Report]:
        """Hand out the pieces and yield the reports. Raises WorkError as soon as a worker or another rank fails or dies."""
        waiting = iter(self._pieces)
        for number, connection in enumerate(list(self._processes)):
            engine = dataclasses.replace(self._job.engine, worker=number, workers=len(self._processes))
            self._send(connection, dataclasses.replace(self._job, engine=engine))
            self._next(connection, waiting)
        while self._doing:
            ready = wait([*self._doing, *ranks.waitables()])
            ranks.check()
            for connection in [one for one in self._doing if one in ready]:
                try:
                    kind, *content = connection.recv()
                except (EOFError, OSError):
                    raise WorkError(self._obituary(connection)) from None
                if kind == "progress":
                    progress(content[0])
                elif kind == "done":
                    self._next(connection, waiting)
                    yield content[0]
                else:
                    sentence, trace = content
                    log.debug("%s", trace)
                    raise WorkError(sentence)

    def _next(self, connection: Connection, waiting: Iterator[Piece]) -> None:
        piece = next(waiting, None)
        if piece is None:
            self._doing.pop(connection, None)
            self._send(connection, None)
        else:
            self._doing[connection] = piece
            self._send(connection, (self._plan.tensors[piece.tensor], piece))

    def _send(self, connection: Connection, message: Any) -> None:
        try:
            connection.send(message)
        except OSError:
            raise WorkError(self._obituary(connection)) from None

    def _tensor(self, connection: Connection) -> str:
        piece = self._doing.get(connection)
        return self._plan.tensors[piece.tensor].name if piece else ""

    def _obituary(self, connection: Connection) -> str:
        code = self._processes[connection].wait()
        if code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
            how += " (the machine may be out of memory: try a smaller --n_process)" if code == -signal.SIGKILL else ""
        else:
            how = f"ended unexpectedly with exit status {code}"
        name = self._tensor(connection)
        return f"a worker {how}{f' while merging tensor {name!r}' if name else ' before its first tensor'}"
