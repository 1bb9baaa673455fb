"""Score one candidate after another: make it, and call the evaluator. In a process of its own, or in the caller's."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection

from ..backends.engine import Engine
from ..errors import MergeError
from ..recipe.yaml_read import parse
from .candidates import MergedCandidate, stored_candidate
from .contract import Candidate, EvaluationError, Evaluator, keep_scratch_in, place_of, scratch_folder
from .job import Job, Result, Setup, plain
from .merger import Merger
from .space import Space
from .spaces import space_of

log = logging.getLogger("paddle_merge")


class Scorer:
    """Scores candidates. setup: of the search. evaluator: None: the one that the setup names."""

    def __init__(self, setup: Setup, evaluator: Evaluator | None = None):
        """Raises ConfigError and CheckpointError if the search file can't be used here."""
        from .evaluators import make  # imports what the evaluator needs

        self._setup = setup
        self._merger = Merger(Engine(setup.tensor_type, setup.device), setup.memory)
        self.evaluator = evaluator if evaluator is not None else make(setup)
        self.space: Space | None = None
        if setup.text:
            self.space = space_of(setup.text, setup.where, self._merger, setup.phase, setup.fixed)

    def score(self, job: Job, wanted: Sequence[str]) -> Result:
        """Return what became of a job. wanted: metrics without which it has failed. Whatever goes wrong is in the result."""
        started = time.perf_counter()
        try:
            with scratch_folder() as near:
                scores = self.evaluator(self._candidate(job, near), job.split, job.seed, job.samples)
            return Result.of(job.number, scores, time.perf_counter() - started, wanted)
        except (EvaluationError, MergeError) as error:
            reason = " ".join(str(error).split())
        except MemoryError:
            reason = "out of memory"
        except (Exception, SystemExit) as error:  # an evaluator may raise anything, and only its candidate fails
            log.debug("%s", traceback.format_exc())
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}{place_of(error, self._setup.folder)}"
        return Result(job.number, seconds=time.perf_counter() - started, error=plain(reason))

    def close(self) -> None:
        self._merger.close()

    def _candidate(self, job: Job, near: str) -> Candidate:
        if job.path:
            return stored_candidate(job.path, self._merger, near)
        if job.values is not None:
            assert self.space is not None
            return MergedCandidate(job.title, self.space.recipe(job.values), self._merger, near)
        recipe = parse(job.recipe, job.title).recipe
        recipe = dataclasses.replace(recipe, config_from=self._setup.config_from or None)
        return MergedCandidate(job.title, recipe, self._merger, near)


def serve(connection: Connection) -> None:
    """Receive a Setup and metrics, then Jobs until None; send ("ready",) or ("error", sentences), then Results."""
    try:
        setup, wanted = connection.recv()
        from .evaluators import prepare

        try:
            scorer = Scorer(setup)
            prepare(scorer.evaluator)
        except MergeError as error:
            connection.send(("error", error.problems))
            return
        connection.send(("ready",))
        while (job := connection.recv()) is not None:
            connection.send(scorer.score(job, wanted))
        scorer.close()
    except (EOFError, OSError):
        return  # the parent has ended


def main(pipe: int, scratch: str) -> None:
    """Run as the process that scorers.py starts. pipe: the file descriptor of this end. scratch: the folder for what it
    writes."""
    keep_scratch_in(scratch)
    logging.getLogger("paddle_merge").setLevel(logging.ERROR)
    threading.Thread(target=_end_with_parent, args=(os.getppid(), scratch), daemon=True).start()
    serve(Connection(pipe))
    shutil.rmtree(scratch, ignore_errors=True)


def _end_with_parent(parent: int, scratch: str) -> None:
    """End this process and what it has started when its parent dies, and delete what it has written."""
    while os.getppid() == parent:
        time.sleep(0.5)
    shutil.rmtree(scratch, ignore_errors=True)
    with contextlib.suppress(OSError):
        os.killpg(os.getpgid(0), signal.SIGKILL)
    os._exit(1)
