"""Run worker processes: have them started, send them pieces, receive their reports, and notice when one dies."""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from ..errors import WorkError
from ..plan.plan import Plan
from ..plan.tensor_plan import Piece
from .fork_server import fork_server, how_ended, is_waiting
from .job import Job, Report
from .output.flock import FolderLock
from .ranks import Ranks
from .worker import Worker

log = logging.getLogger("paddle_merge")
BATCH_BYTES = 1 << 20  # read and written: small pieces are handed out together, for a message takes as long as to merge one
MOST_PIECES = 64  # of a batch
MANY_PIECES = 2000  # small ones; to send more to one worker takes longer than to import here what it has imported
BATCHES = 4  # that each worker gets at least, if there are so many pieces, so that all work, to the end


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
        alone = plan.n_process == ranks.count == 1 and job.engine.tensor_type == "np"
        many_small = len(pieces) > MANY_PIECES and total < len(pieces) * BATCH_BYTES
        if alone and (many_small or not is_waiting()):
            yield from _work_here(plan, job, bar.update)
            return
        with WorkerPool(plan, pieces, job, lock) as pool:
            yield from pool.work(bar.update, ranks)


def _work_here(plan: Plan, job: Job, progress: Callable[[int], Any]) -> Iterator[Report]:
    worker = Worker(job, progress)
    try:
        yield from worker.merge_all((plan.tensors[piece.tensor], piece) for piece in plan.pieces)
    finally:
        worker.close()


class WorkerPool:
    """Worker processes, which hold the lock of the output folder, too. Leaving the context kills those that still run."""

    def __init__(self, plan: Plan, pieces: Sequence[Piece], job: Job, lock: FolderLock | None = None):
        inherited = [lock.file] if lock is not None and lock.file is not None else []
        self._count = min(plan.n_process, len(pieces))
        self._plan, self._pieces, self._job = plan, pieces, job
        self._told = set[Connection]()  # the workers that know that there are no further pieces
        self._together = min(MOST_PIECES, -(-len(pieces) // (BATCHES * max(1, self._count))))  # pieces of a batch, at most
        self._doing: dict[Connection, deque[list[Piece]]] = {}  # the batches that each worker has, in order
        try:
            self._server = fork_server()
            try:
                self._workers = [self._server.fork(inherited) for _ in range(self._count)]
            except BaseException:
                self._server.close()
                raise
        except OSError as error:
            raise WorkError(f"can't start a worker ({error.strerror}); try a smaller --n_process") from None

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: Any) -> None:
        self._server.close()

    def work(self, progress: Callable[[int], Any], ranks: Ranks) -> Iterator[Report]:
        """Hand out the pieces and yield the reports. Raises WorkError as soon as a worker or another rank fails or dies."""
        waiting = iter(self._pieces)
        for number, connection in enumerate(self._workers):
            engine = dataclasses.replace(self._job.engine, worker=number, workers=self._count)
            self._doing[connection] = deque()
            self._send(connection, dataclasses.replace(self._job, engine=engine))
            self._hand_out(connection, waiting)
        while self._doing:
            ready = wait([*self._doing, self._server.fileno(), *ranks.waitables()])
            ranks.check()
            if self._server.fileno() in ready:
                raise self._server.ended()
            for connection in [one for one in self._doing if one in ready]:
                kind, *content = self._receive(connection)
                if kind == "progress":
                    progress(content[0])
                elif kind == "ready":
                    self._hand_out(connection, waiting)
                else:
                    reports, count, asks = content
                    progress(count)
                    self._doing[connection].popleft()
                    if not self._doing[connection] and connection in self._told:
                        del self._doing[connection]
                    yield from reports
                    if asks:
                        self._hand_out(connection, waiting)

    def _hand_out(self, connection: Connection, waiting: Iterator[Piece]) -> None:
        """Send a worker its next batch; without further pieces, tell it that there are none."""
        batch, traffic = list[Piece](), 0
        while traffic < BATCH_BYTES and len(batch) < self._together and (piece := next(waiting, None)) is not None:
            batch.append(piece)
            traffic += self._plan.traffic(piece)
        if batch:
            self._doing[connection].append(batch)
            self._send(connection, [(self._plan.tensors[piece.tensor], piece) for piece in batch])
        else:
            self._told.add(connection)
            if not self._doing[connection]:
                del self._doing[connection]
            self._send(connection, None)

    def _send(self, connection: Connection, message: Any) -> None:
        try:
            connection.send(message)
        except OSError:
            while True:  # until what the worker said last, if it said why it ends
                self._receive(connection)

    def _receive(self, connection: Connection) -> Any:
        """Return the worker's next message. Raises WorkError if the worker failed or died."""
        try:
            message = connection.recv()
        except (EOFError, OSError):
            raise WorkError(self._obituary(connection)) from None
        if message[0] == "error":
            _, sentence, trace = message
            log.debug("%s", trace)
            raise WorkError(sentence)
        return message

    def _obituary(self, connection: Connection) -> str:
        how, batches = how_ended(self._server.status(connection)), self._doing.get(connection)
        if not batches:
            return f"a worker {how} while it had no tensor to merge"
        batch = batches[0]
        more = f" or one of the {len(batch) - 1} after it" if len(batch) > 1 else ""
        return f"a worker {how} while merging tensor {self._plan.tensors[batch[0].tensor].name!r}{more}"
