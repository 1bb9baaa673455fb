"""Score many candidates at the same time: start processes, hand out jobs, and go on when one fails, hangs or dies."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any, Protocol

from ..errors import MergeError, WorkError
from .contract import PREFIX, Evaluator
from .job import Job, Result, Setup
from .scorer import Scorer

log = logging.getLogger("paddle_merge")
LOOK_SECONDS = 1.0  # after which it is looked whether a process has ended without closing its connection
MOST_LOST = 20  # processes in a row that may end without a job


class Scorers(Protocol):
    """Whoever scores candidates."""

    def score(self, jobs: Sequence[Job]) -> Iterator[Result]:
        """Yield the result of each job, in any order."""

    def close(self) -> None: ...


class Here:
    """Scores in this process, one candidate after the other. evaluator: in place of the setup's."""

    def __init__(self, setup: Setup, wanted: Sequence[str], evaluator: Evaluator):
        self._scorer, self._wanted = Scorer(setup, evaluator), wanted

    def score(self, jobs: Sequence[Job]) -> Iterator[Result]:
        for job in jobs:
            yield self._scorer.score(job, self._wanted)

    def close(self) -> None:
        self._scorer.close()


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    connection: Connection
    scratch: str  # the folder for what it writes
    ready: bool = False
    job: Job | None = None
    started: float = 0.0


class Processes:
    """Scores in processes of their own, which are started afresh when one dies or takes longer than the time limit."""

    def __init__(self, setup: Setup, wanted: Sequence[str], count: int):
        """count: of processes, which start when they have something to do."""
        self._setup, self._wanted, self._count = setup, tuple(wanted), count
        self._workers: list[_Worker] = []
        self._lost = 0  # processes in a row that ended without a job

    def score(self, jobs: Sequence[Job]) -> Iterator[Result]:
        waiting = deque(jobs)
        limit = self._setup.evaluation.time_limit
        while waiting or any(worker.job for worker in self._workers):
            for worker in [one for one in self._workers if one.ready and one.job is None and one.process.poll() is not None]:
                self._lose(worker)
            while len(self._workers) < min(
                self._count, len(waiting) + sum(worker.job is not None for worker in self._workers)
            ):
                self._workers.append(self._start())
            for worker in self._workers:
                if worker.ready and worker.job is None and waiting:
                    self._give(worker, waiting.popleft())
            yield from self._receive(limit)

    def close(self) -> None:
        for worker in self._workers:
            _end(worker)
        self._workers.clear()

    def _start(self) -> _Worker:
        ours, theirs = Pipe()
        scratch = tempfile.mkdtemp(prefix=PREFIX)
        code = (
            "import signal; signal.signal(signal.SIGINT, signal.SIG_DFL); import sys;"
            f" sys.path[:] = {sys.path!r}; from paddle_merge.search.scorer import main; main({theirs.fileno()}, {scratch!r})"
        )
        try:
            with theirs:
                process = subprocess.Popen(
                    [sys.executable, "-c", code],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    start_new_session=True,
                )
        except OSError as error:
            shutil.rmtree(scratch, ignore_errors=True)
            raise WorkError(f"can't start a process for evaluations ({error.strerror}); try fewer workers") from None
        worker = _Worker(process, ours, scratch, started=time.monotonic())
        ours.send((self._setup, self._wanted))
        return worker

    def _give(self, worker: _Worker, job: Job) -> None:
        worker.job, worker.started = job, time.monotonic()
        with contextlib.suppress(OSError):  # it has died, which _receive notices
            worker.connection.send(job)

    def _receive(self, limit: float | None) -> Iterator[Result]:
        """Wait for any process to answer, die or run out of time, and yield the results."""
        now = time.monotonic()
        ends = [worker.started + limit for worker in self._workers if worker.job and limit is not None]
        wait([worker.connection for worker in self._workers], max(0.0, min([*ends, now + LOOK_SECONDS]) - now))
        for worker in list(self._workers):
            ended = worker.process.poll() is not None
            if worker.connection.poll():
                yield from self._answer(worker)
            elif ended:  # what it has started holds its end of the connection open
                yield from self._ended(worker)
            elif worker.job and limit is not None and time.monotonic() > worker.started + limit:
                yield self._gone(worker, f"it took longer than time_limit, {limit:g} s")

    def _answer(self, worker: _Worker) -> Iterator[Result]:
        try:
            answer: Any = worker.connection.recv()
        except (EOFError, OSError):
            yield from self._ended(worker)
            return
        if isinstance(answer, Result):
            worker.job, self._lost = None, 0
            yield answer
        elif answer[0] == "ready":
            worker.ready = True
        else:
            raise MergeError(answer[1])

    def _ended(self, worker: _Worker) -> Iterator[Result]:
        if worker.job is None:
            self._lose(worker)
        else:
            yield self._gone(worker, _how(worker.process.wait()))

    def _lose(self, worker: _Worker) -> None:
        """Forget a process that has ended while it had no job; another one takes its place.

        Raises WorkError if that would go on for ever.
        """
        self._lost += 1
        if not worker.ready or self._lost > MOST_LOST:
            when = "between two of them" if worker.ready else "before its first one"
            raise WorkError(f"a process for evaluations ended {when}: {_how(worker.process.wait())}")
        _end(worker)
        self._workers.remove(worker)

    def _gone(self, worker: _Worker, reason: str) -> Result:
        """End a process, and return the result of what it was doing."""
        job = worker.job
        assert job is not None
        _end(worker)
        self._workers.remove(worker)
        return Result(job.number, seconds=time.monotonic() - worker.started, error=reason)


def _end(worker: _Worker) -> None:
    """Kill a process and all that it has started, and delete what they have written, such as the model that was scored."""
    worker.connection.close()
    try:
        os.killpg(worker.process.pid, signal.SIGKILL)
    except OSError:
        worker.process.kill()
    worker.process.wait()
    shutil.rmtree(worker.scratch, ignore_errors=True)


def _how(code: int) -> str:
    if code < 0:
        more = " (the machine may be out of memory)" if code == -signal.SIGKILL else ""
        return f"its process was killed by {signal.Signals(-code).name}{more}"
    return f"its process ended with exit status {code}"
