"""Score candidates and models through the journal: what it has is not scored again, and every other result is appended at
once.

So a search that goes on after it was stopped does the same steps as before, without the evaluations that it has.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import ConfigError
from ..run.output.journal import file_state
from .asked import Asked
from .contract import Evaluator
from .evaluators import cautions, check_objectives, make
from .gene import Values
from .job import Job, Result, Setup
from .journal import Journal, Place
from .outcome import Scored
from .output import clear_folder, make_folder
from .ray_scorers import RayScorers
from .scorers import Here, Processes, Scorers
from .spaces import FIRST
from .spec import File, SearchSpec, SoupSpec
from .sweep_spec import SweepSpec

log = logging.getLogger("paddle_merge")


def evaluator_of(asked: Asked, file: File, spec: SearchSpec | SweepSpec | SoupSpec) -> Evaluator:
    """Return what scores candidates. Raises ConfigError if it can't be had, or gives no such objectives."""
    evaluator = asked.evaluator if asked.evaluator is not None else make(_setup(asked, file, spec))
    check_objectives(evaluator, spec.objectives, file)
    for sentence in cautions(evaluator):
        log.warning("%s", sentence)
    return evaluator


class Scoring:
    """Scores the candidates of a search, the points of a sweep, or the members of a soup.

    phase, fixed: which part of the file is searched, as of spaces.space_of. fresh: is called with the place of every result
    that was not in the journal.
    """

    def __init__(
        self, asked: Asked, file: File, spec: SearchSpec | SweepSpec | SoupSpec, phase: str = "", fixed: Values = ()
    ):
        """Choose who scores: asked.evaluator in this process, a Ray cluster, or processes of their own, whose crash is the
        failure of one candidate. Raises ConfigError if no cluster can be reached."""
        self._asked, self._file, self._spec = asked, file, spec
        self._next, self._phase = 0, f"{FIRST} " if phase == FIRST else ""
        self._journal: Journal | None = None
        self.fresh: Callable[[Place], object] = lambda _: None
        setup, wanted = _setup(asked, file, spec, phase, fixed), tuple(spec.objectives)
        self._scorers: Scorers
        if asked.ray is not None:
            self._scorers = RayScorers(setup, wanted, spec.workers, asked.ray)
        elif asked.evaluator is not None:
            self._scorers = Here(setup, wanted, asked.evaluator)
        else:
            self._scorers = Processes(setup, wanted, spec.workers)

    @property
    def journal(self) -> Journal:
        assert self._journal is not None, "open() comes first"
        return self._journal

    def open(
        self,
        differing: Mapping[str, Sequence[str]],
        optimizer: str,
        files: Sequence[str],
        journal: Journal | None = None,
    ) -> None:
        """Begin the journal, or go on with it; or take that of the first part of a search.

        differing: what candidates differ in, such as the names of genes, by the word for it. optimizer: what makes the
        points. files: that merges read; scores are those of what was in them. The caller closes the journal. Raises
        ConfigError if the journal in the folder is that of another search, or of other files, and OutputError.
        """
        if journal is None:
            header = {  # what makes another search than this one; workers and the rule by flag make no difference
                "file": hashlib.sha256(self._file.text.encode("utf-8", "surrogatepass")).hexdigest(),
                **{word: list(names) for word, names in differing.items()},
                "optimizer": optimizer,
                "seed": self._spec.seed,
            }
            make_folder(self._asked.output)
            read = {os.path.abspath(file): file_state(file) for file in [*files, *self._samples()]}
            journal = Journal(self._asked.output, header, read, self._asked.resume)
            if not journal.evaluations:  # so too if it was killed between these two lines
                clear_folder(self._asked.output)
        self._journal = journal

    def _samples(self) -> list[str]:
        """Return the files of samples; a split may be another word that the evaluator takes."""
        named = [path for path in (self._spec.data.search, self._spec.data.report) if path]
        paths = [os.path.join(self._file.folder, os.path.expanduser(path)) for path in named]
        return [path for path in paths if os.path.isfile(path)]

    def job(self, title: str, **what: Any) -> Job:
        """Return a job with a number of its own. what: fields of Job."""
        self._next += 1
        return Job(self._next, title, seed=self._spec.seed, **what)

    def score(self, jobs: Sequence[tuple[Place, Job]], each: Callable[[Result], object] = lambda _: None) -> list[Result]:
        """Return the results of jobs, in their order; those in the journal without scoring anything.

        each: called with every result as soon as it is there.
        """
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
            self.fresh(places[result.number][0])
            results[result.number] = result
            each(result)
        return [results[job.number] for _, job in jobs]

    def score_models(
        self,
        phase: str,
        models: Sequence[Scored],
        places: Sequence[int] | None = None,
        split: str = "search",
        each: Callable[[Result], object] = lambda _: None,
    ) -> list[Scored]:
        """Return models with what they score in full, each by its values, its recipe or its path.

        phase: of the journal. places: by which the journal knows them; None: 0, 1 ... each: as of score.
        """
        jobs = []
        for place, one in zip(places if places is not None else range(len(models)), models, strict=True):
            what: dict[str, Any] = {"path": one.path} if one.path else {"values": one.values}
            what = {"recipe": one.recipe} if one.recipe else what
            jobs.append((Place(phase, one.generation, place), self.job(one.path or one.title, split=split, **what)))
        results = self.score(jobs, each)
        return [dataclasses.replace(one, result=result) for one, result in zip(models, results, strict=True)]

    def report(self, models: Sequence[Scored], among: Sequence[Scored]) -> dict[str, Result]:
        """Return results on the report split, by title; empty if there is none.

        among: all models that may ever be reported, in an order that doesn't depend on which one is picked: so the journal
        knows them when another rule picks another one.
        """
        if self._spec.data.report is None:
            return {}
        numbers: dict[tuple[str, str, Values], int] = {}
        for number, one in enumerate(among):
            numbers.setdefault(one.identity, number)
        keys = [one.identity for one in models]
        unique = list({key: dataclasses.replace(one, generation=-1) for key, one in zip(keys, models, strict=True)}.items())
        scored = self.score_models("report", [one for _, one in unique], [numbers[key] for key, _ in unique], "report")
        results = {key: one.known for (key, _), one in zip(unique, scored, strict=True)}
        return {one.title: results[key] for one, key in zip(models, keys, strict=True)}

    def close(self) -> None:
        self._scorers.close()


def reasons(failed: Sequence[Scored]) -> str:
    """Return why models failed, a few different reasons."""
    return "; ".join(sorted({one.known.error for one in failed if one.known.error})[:3])


AGAIN = "once that is mended, --overwrite begins again, for --resume scores nothing twice"


def check_some(scored: Sequence[Scored], what: str) -> None:
    """Raise ConfigError if all have failed. what: what they are, in the plural."""
    if all(one.known.error for one in scored):
        raise ConfigError(f"all {len(scored)} {what} failed: {reasons(scored)}; {AGAIN}")


def _setup(asked: Asked, file: File, spec: SearchSpec | SweepSpec | SoupSpec, phase: str = "", fixed: Values = ()) -> Setup:
    return Setup(
        evaluation=spec.evaluate,
        data=spec.data,
        where=file.where,
        text=file.text if not isinstance(spec, SoupSpec) else "",
        config_from=spec.config_from if isinstance(spec, SoupSpec) else "",
        folder=file.folder,
        tensor_type=spec.tensor_type,
        device=spec.device,
        memory=asked.memory // (spec.workers if asked.evaluator is None else 1),
        phase=phase,
        fixed=fixed,
    )
