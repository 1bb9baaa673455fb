"""Score candidates on a Ray cluster: one actor per worker, on whichever node has room.

The nodes must see the models under the same paths, and have this package installed. An actor that dies, or takes longer than
the time limit, is replaced, and its candidate has failed.
"""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError, MergeError, WorkError
from .job import Job, Result, Setup
from .scorer import Scorer

SECONDS = 10.0  # to wait for an answer from a cluster's address


class _Actor:
    """What runs on the cluster. refused: why the search file can't be used there."""

    def __init__(self, setup: Setup, wanted: Sequence[str]):
        self._wanted, self.refused = wanted, list[str]()
        try:
            self._scorer = Scorer(setup)
        except MergeError as error:
            self.refused = error.problems

    def problems(self) -> list[str]:
        return self.refused

    def score(self, job: Job) -> Result:
        return self._scorer.score(job, self._wanted)


@dataclass
class _Running:
    job: Job
    actor: Any
    started: float


class RayScorers:
    """Scores on a cluster. address: of the cluster, as ray.init takes it. count: of actors."""

    def __init__(self, setup: Setup, wanted: Sequence[str], count: int, address: str):
        """Raises ConfigError if Ray isn't installed, or there is no cluster at the address."""
        try:
            import ray
        except ImportError:
            raise ConfigError('--ray needs Ray, which is not installed: python -m pip install "paddle_merge[ray]"') from None
        host, colon, port = address.rpartition(":")
        try:
            if colon and port.isdecimal():  # Ray itself would try for minutes
                socket.create_connection((host.strip("[]"), int(port)), SECONDS).close()
            ray.init(address=address, ignore_reinit_error=True, log_to_driver=False, logging_level="ERROR")
        except Exception as error:  # ConnectionError, ValueError, RuntimeError ...
            raise ConfigError(
                f"--ray {address}: no Ray cluster can be reached there ({' '.join(str(error).split())})"
            ) from None
        self._ray, self._setup, self._wanted, self._count = ray, setup, tuple(wanted), count
        self._idle: list[Any] = []

    def score(self, jobs: Sequence[Job]) -> Iterator[Result]:
        waiting, running = deque(jobs), dict[Any, _Running]()
        limit = self._setup.evaluation.time_limit
        while waiting or running:
            while waiting and len(running) < self._count:
                actor = self._idle.pop() if self._idle else self._start()
                job = waiting.popleft()
                running[actor.score.remote(job)] = _Running(job, actor, time.monotonic())
            wait = (
                None if limit is None else max(0.01, min(one.started for one in running.values()) + limit - time.monotonic())
            )
            ready, _ = self._ray.wait(list(running), timeout=wait)
            for reference in ready:
                yield self._result(reference, running.pop(reference))
            for reference, one in list(running.items()):
                if limit is not None and time.monotonic() > one.started + limit:
                    del running[reference]
                    self._ray.kill(one.actor)
                    yield Result(one.job.number, seconds=limit, error=f"it took longer than time_limit, {limit:g} s")

    def close(self) -> None:
        for actor in self._idle:
            self._ray.kill(actor)
        self._ray.shutdown()

    def _start(self) -> Any:
        actor = self._ray.remote(num_cpus=1)(_Actor).remote(self._setup, self._wanted)
        try:
            if problems := self._ray.get(actor.problems.remote()):
                raise ConfigError(problems)
        except self._ray.exceptions.RayError as error:
            raise WorkError(f"--ray: an actor can't be started ({' '.join(str(error).split())[:300]})") from None
        return actor

    def _result(self, reference: Any, one: _Running) -> Result:
        try:
            result: Result = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            seconds = time.monotonic() - one.started
            return Result(one.job.number, seconds=seconds, error=f"its process on the cluster died ({type(error).__name__})")
        self._idle.append(one.actor)
        return result
