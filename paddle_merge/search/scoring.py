"""Score jobs through the journal: those that it has are not scored again, and every other result is appended at once.

So a search that goes on after it was stopped does the same steps as before, without the evaluations that it has.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .contract import Evaluator
from .job import Job, Result, Setup
from .journal import Journal, Place
from .ray_scorers import RayScorers
from .scorers import Here, Processes, Scorers


class Scoring:
    """Scores the jobs of a search, or of a sweep."""

    def __init__(
        self,
        setup: Setup,
        wanted: Sequence[str],
        *,
        workers: int,
        seed: int,
        evaluator: Evaluator | None,
        folder: str,
        made: Evaluator | None = None,
        ray: str | None = None,
        phase: str = "",
    ):
        """Choose who scores.

        wanted: metrics without which an evaluation has failed. evaluator: in place of the setup's, in this process; None:
        the setup's. made: the setup's, if it was made already. folder: in which the journal lies, after open(). ray: the
        address of a Ray cluster that scores; None: this machine does. phase: what the journal's phases begin with, of the
        first of two searches. Raises ConfigError if no cluster can be reached there.
        """
        self._seed, self._folder, self._phase, self._next = seed, folder, phase, 0
        self.journal: Journal | None = None
        self._scorers: Scorers
        if ray is not None:
            self._scorers = RayScorers(setup, wanted, workers, ray)
        elif evaluator is not None or (workers == 1 and setup.evaluation.time_limit is None):
            self._scorers = Here(setup, wanted, evaluator if evaluator is not None else made)
        else:
            self._scorers = Processes(setup, wanted, workers)

    def open(self, header: Mapping[str, Any], resume: bool, journal: Journal | None = None) -> None:
        """Begin the journal, or go on with it, as Journal says; or take that of an earlier search of the same file.

        The caller closes the journal. Raises ConfigError and OutputError.
        """
        os.makedirs(self._folder, exist_ok=True)
        self.journal = journal if journal is not None else Journal(self._folder, header, resume)

    def job(self, title: str, **what: Any) -> Job:
        """Return a job with a number of its own. what: fields of Job."""
        self._next += 1
        return Job(self._next, title, seed=self._seed, **what)

    def score(
        self,
        jobs: Sequence[tuple[Place, Job]],
        each: Callable[[Result], object] = lambda _: None,
        fresh: Callable[[Place], object] = lambda _: None,
    ) -> list[Result]:
        """Return the results of jobs, in their order; those in the journal without scoring anything.

        each: called with every result as soon as it is there. fresh: called with the place of each that was not in
        the journal.
        """
        assert self.journal is not None, "open() comes first"
        jobs = [(dataclasses.replace(place, phase=f"{self._phase}{place.phase}"), job) for place, job in jobs]
        results: dict[int, Result] = {}
        left = []
        for place, job in jobs:
            known = self.journal.find(place, job)
            if known is not None:
                results[job.number] = known
                each(known)
            else:
                left.append(job)
        places = {job.number: (place, job) for place, job in jobs}
        for result in self._scorers.score(left):
            self.journal.add(*places[result.number], result)
            fresh(places[result.number][0])
            results[result.number] = result
            each(result)
        return [results[job.number] for _, job in jobs]

    def close(self) -> None:
        self._scorers.close()
