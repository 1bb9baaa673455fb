"""Sweep: score all points of a grid over a recipe's free values, or between two models, pick one, and write its merge.

The order of the steps: check everything; score the inputs as they are; score the points; pick. Everything that is scored
goes through the journal (scoring.py).
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, cast

from ..errors import Attempts, ConfigError, MergeError
from ..recipe.recipe import Value
from .alignment import AlignmentSpace
from .contract import Evaluator
from .data import check_splits
from .gene import Values
from .grid import grid
from .job import Job, Result, Setup
from .journal import Place
from .merger import Merger
from .objectives import best, losses
from .outcome import Scored
from .output import check_folder, named, write_best, write_report
from .pick import check_references, picked
from .report.summary import BEST
from .rule import parse_rule
from .scatter import draw
from .scoring import Scoring
from .space import RecipeSpace
from .spaces import space_of
from .spec import File, read_file
from .sweep_output import SweepOutcome, sweep_report
from .sweep_spec import SweepSpec, sweep_spec
from .tax import Tax

NEEDS = ("moocore", "matplotlib")
PRE, ALIGNED = "pre", "aligned"  # what rules and tables call the ends of a sweep between two models
LONGEST = 4  # values, with which a point is still called by them


@dataclass
class SweepAsked:
    """What a sweep is asked to do besides the file. evaluator, workers, pick: in place of the file's."""

    file: str
    output: str
    resume: bool = False
    overwrite: bool = False
    workers: int | None = None
    pick: str | None = None
    memory: int = 0
    evaluator: Evaluator | None = field(default=None, repr=False)


def sweep(asked: SweepAsked, progress: bool | None = None) -> SweepOutcome:
    """Sweep as a file says; write the picked recipe, its merge, the report and a picture into the output folder.

    progress: whether to show a progress line; None: if standard error is a terminal.
    Raises MergeError (ConfigError, CheckpointError, OutputError, WorkError), each listing all problems found. If no point
    meets the rule by which one is picked, the report and the picture are written all the same.
    """
    file = read_file(asked.file)
    spec = sweep_spec(file)
    attempt = Attempts()
    if asked.workers is not None:
        spec = dataclasses.replace(spec, workers=asked.workers)
    if asked.pick is not None:
        spec = dataclasses.replace(spec, pick=attempt(parse_rule, asked.pick, "--pick", spec.objectives))
    attempt(_check_packages)
    attempt(check_splits, spec.data, file.folder)
    attempt(check_folder, asked.output, asked.resume, asked.overwrite)
    merger = Merger()
    space = cast(RecipeSpace | AlignmentSpace | None, attempt(space_of, file.text, file.where, merger))
    points = attempt(_points, space) if space is not None else None
    if space is not None and points:
        attempt(_check_points, space, points, spec, merger)
        if spec.pick is not None:
            attempt(spec.pick.check, list(_inputs(space, points, spec)))
    attempt.finish()
    assert space is not None
    assert points is not None
    setup = Setup(
        evaluation=spec.evaluate,
        data=spec.data,
        where=file.where,
        text=file.text,
        folder=file.folder,
        tensor_type=spec.tensor_type,
        device=spec.device,
        memory=asked.memory,
    )
    scoring = Scoring(
        setup,
        tuple(spec.objectives),
        workers=spec.workers,
        seed=spec.seed,
        evaluator=asked.evaluator,
        folder=asked.output,
    )
    try:
        scoring.open(_header(file, space, spec), asked.resume)
        return _Sweep(asked, spec, space, points, scoring).run(progress)
    finally:
        scoring.close()
        if scoring.journal is not None:
            scoring.journal.close()


def _header(file: File, space: RecipeSpace | AlignmentSpace, spec: SweepSpec) -> dict[str, Any]:
    """Return what makes another sweep than this one. Workers and the rule by flag make no difference."""
    return {
        "file": hashlib.sha256(file.text.encode("utf-8", "surrogatepass")).hexdigest(),
        "genes": [gene.name for gene in space.genes],
        "optimizer": "sweep",
        "seed": spec.seed,
    }


class _Sweep:
    def __init__(
        self,
        asked: SweepAsked,
        spec: SweepSpec,
        space: RecipeSpace | AlignmentSpace,
        points: Sequence[Values],
        scoring: Scoring,
    ):
        self._asked, self._spec, self._space, self._points, self._scoring = asked, spec, space, points, scoring

    def run(self, progress: bool | None) -> SweepOutcome:
        started = time.monotonic()
        inputs = self._scored_inputs()
        by_name = {name: one.known for one in inputs for name in (one.title, one.path)}
        if self._spec.pick is not None:
            check_references(self._spec.pick, self._spec.objectives, by_name)
        points = self._scored_points(progress)
        known = [one for one in points if not one.known.error]
        if not known:
            raise ConfigError(f"all {len(points)} points failed: {_reasons(points)}")
        alignment = self._spec.alignment
        tax = None
        if alignment is not None:
            ends = (by_name[PRE].metrics, by_name[ALIGNED].metrics)
            tax = Tax(self._spec.objectives, alignment.reward, *ends)
        front = _front(known, self._spec.objectives)
        refused, chosen = None, None
        try:
            chosen = picked(known, front, self._spec.objectives, self._spec.pick, by_name)
        except MergeError as error:
            refused = error
        outcome = SweepOutcome(
            spec=self._spec,
            space=self._space,
            inputs=inputs,
            points=points,
            front=front,
            picked=chosen,
            tax=tax,
            reported=self._reported([*inputs, *front, *([chosen] if chosen and chosen not in front else [])]),
            seconds=time.monotonic() - started,
        )
        if chosen is not None:
            write_best(self._asked.output, self._space.recipe(chosen.values))
        if chosen is not None or not os.path.exists(
            os.path.join(self._asked.output, BEST)
        ):  # else that of another rule stays
            write_report(self._asked.output, sweep_report(outcome))
            draw(self._asked.output, outcome)
        if refused is not None:
            raise refused
        return outcome

    def _scored_inputs(self) -> list[Scored]:
        """Return the models that are merged, scored as they are. Raises ConfigError if that fails where it is needed."""
        named_inputs = _inputs(self._space, self._points, self._spec)
        if self._spec.alignment is not None:
            named_inputs = {name: path for name, path in named_inputs.items() if name in (PRE, ALIGNED)}
        jobs = [
            (Place("baselines", -1, number), self._scoring.job(path, path=path))
            for number, path in enumerate(named_inputs.values())
        ]
        results = self._scoring.score(jobs)
        found = [Scored(name, result, path=path) for (name, path), result in zip(named_inputs.items(), results, strict=True)]
        failed = [one for one in found if one.known.error]
        if failed and (len(failed) == len(found) or self._spec.alignment is not None):
            names = ", ".join(one.path for one in failed)
            raise ConfigError(f"{self._spec.at['objectives']}: {names} can't be scored: {_reasons(failed)}")
        return found

    def _scored_points(self, progress: bool | None) -> list[Scored]:
        from tqdm import tqdm

        titles = [title_of(self._space, values, number) for number, values in enumerate(self._points)]
        jobs = [
            (Place("sweep", 0, number), self._scoring.job(title, values=values))
            for number, (title, values) in enumerate(zip(titles, self._points, strict=True))
        ]
        disable = not sys.stderr.isatty() if progress is None else not progress
        with tqdm(total=len(jobs), desc="sweeping", unit="point", disable=disable) as bar:
            results = self._scoring.score(jobs, lambda _: bar.update())
        return [
            Scored(title, result, generation=0, values=values)
            for title, values, result in zip(titles, self._points, results, strict=True)
        ]

    def _reported(self, scored: Sequence[Scored]) -> Mapping[str, Result]:
        """Return results on the report split, by title; empty if there is none."""
        if self._spec.data.report is None:
            return {}
        jobs: list[tuple[Place, Job]] = []
        for one in scored:  # a point has its own number, so that another rule finds it in the journal
            place = self._points.index(one.values) if one.values else len(self._points) + len(jobs)
            what: dict[str, Any] = {"path": one.path} if one.path else {"values": one.values}
            jobs.append((Place("report", -1, place), self._scoring.job(one.title, split="report", **what)))
        return {one.title: result for one, result in zip(scored, self._scoring.score(jobs), strict=True)}


def title_of(space: RecipeSpace | AlignmentSpace, values: Values, number: int) -> str:
    """Return what people call a point. number: of the point, from 0."""
    if isinstance(space, AlignmentSpace):
        return space.title(values)
    if len(values) > LONGEST:
        return f"point {number}"
    return ", ".join(f"{name} {value}" for name, value in named(space, values).items())


def _points(space: RecipeSpace | AlignmentSpace) -> list[Values]:
    return space.points() if isinstance(space, AlignmentSpace) else grid(space)


def _inputs(space: RecipeSpace | AlignmentSpace, points: Sequence[Values], spec: SweepSpec) -> dict[str, str]:
    """Return the paths of the models that are merged, by their names: pre, aligned and the paths, or only the paths."""
    if spec.alignment is not None:
        pre, aligned = spec.alignment.pre, spec.alignment.aligned
        return {PRE: pre, ALIGNED: aligned, pre: pre, aligned: aligned}
    return {path: path for values in _covering(points) for path in space.recipe(values).sources}


def _check_points(space: RecipeSpace | AlignmentSpace, points: Sequence[Values], spec: SweepSpec, merger: Merger) -> None:
    """Check from the headers of the inputs that points can be merged. Raises MergeError listing what can't.

    Not all are checked, so what only a combination of values can't do makes its point fail later.
    """
    at = f"{spec.alignment.at['pre']}: " if spec.alignment is not None else ""
    problems: dict[str, MergeError] = {}
    for values in _covering(points):
        try:
            merger.plan(space.recipe(values))
        except MergeError as error:
            problems |= dict.fromkeys((f"{at}{problem}" for problem in error.problems), error)
    if problems:
        raise type(next(iter(problems.values())))(list(problems))


def _covering(points: Sequence[Values]) -> list[Values]:
    """Return points that together have every value of everything."""
    seen, found = set[tuple[int, Value]](), []
    for values in points:
        if not seen >= (new := set(enumerate(values))):
            seen |= new
            found.append(values)
    return found


def _check_packages() -> None:
    if missing := [name for name in NEEDS if find_spec(name) is None]:
        raise ConfigError(f'a sweep needs {" and ".join(missing)}: python -m pip install "paddle_merge[search]"')


def _front(points: Sequence[Scored], objectives: Mapping[str, str]) -> list[Scored]:
    """Return the points that no other one beats."""
    return [points[place] for place in best(losses([one.known for one in points], objectives))]


def _reasons(failed: Sequence[Scored]) -> str:
    return "; ".join(sorted({one.known.error for one in failed})[:3])
