"""Score models with the evaluator of a file, side by side: checkpoints, and the merges of recipes."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..checkpoints.adapters import open_model
from ..errors import Attempts, ConfigError
from ..recipe.yaml_read import parse
from ..records import record
from .candidates import alone
from .contract import Scores
from .data import check_file, check_splits
from .evaluators import check_objectives, make
from .job import Job, Result, Setup
from .keys import keys_for_flags
from .merger import Merger
from .scorers import Processes
from .sections import evaluation_spec
from .spec import Data, File, read_file


@dataclass
class Asked:
    """What is to be scored.

    models: paths of checkpoints, as a merge takes them, and of recipes (.yaml). file: holds the section `evaluate`. split:
    "search" or "report"; None: report if the file names data for it, else search. seed: None: the file's. workers: how many
    models are scored at the same time. memory: bytes of inputs that each may keep.
    """

    models: Sequence[str]
    file: str
    split: str | None = None
    seed: int | None = None
    workers: int = 1
    memory: int = 0


@record(frozen=True)
class Evaluated:
    """A model, and what became of its evaluation."""

    model: str
    result: Result

    def error(self, metric: str) -> float | None:
        """Return the standard error of a metric; None if it is unknown."""
        return Scores(self.result.metrics, self.result.samples).error(metric)


@record(frozen=True)
class Evaluation:
    """Models side by side.

    kind: of the evaluator. data: what the file names for the split; None: nothing. samples: how many it has; None: unknown.
    """

    kind: str
    split: str
    data: str | None
    samples: int | None
    seed: int
    objectives: Mapping[str, str]
    rows: Sequence[Evaluated]

    @property
    def metrics(self) -> list[str]:
        """The names of all metrics, the objectives first."""
        return list(dict.fromkeys([*self.objectives, *(name for row in self.rows for name in row.result.metrics)]))

    @property
    def failed(self) -> list[Evaluated]:
        return [row for row in self.rows if row.result.error]


@record(frozen=True)
class Prepared:
    """What is to be scored, checked as far as that goes without scoring anything."""

    setup: Setup
    objectives: Mapping[str, str]
    split: str
    seed: int
    samples: int | None
    jobs: Sequence[Job]
    workers: int

    def run(self, progress: bool | None = None) -> Evaluation:
        """Score the models, each in another process than this, so that one that crashes is a row with its reason.

        progress: whether to show a progress line; None: if standard error is a terminal. Raises WorkError if no process can
        be started.
        """
        results = _results(self.setup, tuple(self.objectives), self.jobs, self.workers, progress)
        rows = [Evaluated(job.title, results[job.number]) for job in self.jobs]
        data, kind = self.setup.data.of(self.split), self.setup.evaluation.kind
        return Evaluation(kind, self.split, data, self.samples, self.seed, self.objectives, rows)


@keys_for_flags()
def prepare(asked: Asked) -> Prepared:
    """Return what is to be scored. Raises ConfigError and CheckpointError with all problems of the file and the models."""
    file = read_file(asked.file)
    evaluation, objectives, data, seed = evaluation_spec(file)
    seed = seed if asked.seed is None else asked.seed
    attempt = Attempts()
    attempt(check_splits, data, file.folder)
    split = attempt(split_of, data, asked.split, file) or "report"
    attempt(check_file, evaluation.kind, data, split, file)
    setup = Setup(evaluation, data, folder=file.folder, memory=asked.memory)
    evaluator, samples = attempt(make, setup), None
    if evaluator is not None:
        attempt(check_objectives, evaluator, objectives, file)
        samples = attempt(evaluator.count, split)
    merger = Merger()
    jobs = [attempt(_job, number, path, merger) for number, path in enumerate(asked.models)]
    merger.close()
    attempt.finish()
    todo = [dataclasses.replace(job, split=split, seed=seed) for job in jobs if job is not None]
    return Prepared(setup, objectives, split, seed, samples, todo, asked.workers)


def split_of(data: Data, wanted: str | None, file: File) -> str:
    """Return the split that is scored. Raises ConfigError if the file names data, but none for the one that is wanted."""
    named = [split for split in ("report", "search") if data.of(split)]
    if wanted is not None and named and wanted not in named:
        raise ConfigError(f"{file.at('data')}: data names no {wanted}, which --split asks for; it names {named[0]}")
    return wanted or (named[0] if named else "report")


def _job(number: int, path: str, merger: Merger) -> Job:
    """Return the job that scores a model, whose headers are read. Raises CheckpointError and ConfigError."""
    path = os.path.expanduser(path)
    if path.lower().endswith((".yaml", ".yml")) and not os.path.isdir(path):
        text = read_file(path).text
        merger.plan(parse(text, path).recipe)
        return Job(number, path, recipe=text)
    if os.path.isdir(path):
        open_model(path, "model")  # it is scored as it is, also what can't be merged
    else:
        merger.plan(parse(alone(path), path).recipe)
    return Job(number, path, path=path)


def _results(
    setup: Setup, wanted: Sequence[str], jobs: Sequence[Job], workers: int, progress: bool | None
) -> dict[int, Result]:
    """Return the result of each job by its number."""
    from tqdm import tqdm

    disable = not sys.stderr.isatty() if progress is None else not progress
    scorers, found = Processes(setup, wanted, workers), dict[int, Result]()
    try:
        with tqdm(total=len(jobs), desc="evaluating", unit="model", disable=disable) as bar:
            for result in scorers.score(jobs):
                found[result.number] = result
                bar.update()
    finally:
        scorers.close()
    return found
