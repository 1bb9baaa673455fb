"""Sweep: score all points of a grid over a recipe's free values, or between two models, pick one, and write its merge.

The order of the steps: check everything; score the inputs as they are; score the points; pick. Everything that is scored
goes through the journal (scoring.py).
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from typing import cast

from ..errors import Attempts, ConfigError, MergeError
from ..recipe.recipe import Value
from .alignment import AlignmentSpace
from .asked import Asked
from .card import write_card
from .gene import Values
from .grid import grid
from .keys import keys_for_flags
from .merger import Merger
from .objectives import best, losses
from .outcome import Scored
from .output import check_best, named, write_best, write_report
from .pick import check_references, picked
from .report.summary import BEST
from .scatter import draw
from .scoring import AGAIN, Scoring, check_some, evaluator_of, reasons
from .space import RecipeSpace
from .spaces import space_of
from .spec import read_file
from .sweep_output import SweepOutcome, sweep_report
from .sweep_spec import SweepSpec, sweep_spec
from .tax import Tax

log = logging.getLogger("paddle_merge")
NEEDS = ("moocore", "matplotlib")
PRE, ALIGNED = "pre", "aligned"  # what rules and tables call the ends of a sweep between two models
LONGEST = 4  # values, with which a point is still called by them


@keys_for_flags()
def sweep(asked: Asked, progress: bool | None = None) -> SweepOutcome:
    """Sweep as a file says; write the picked recipe, its merge, the report and a picture into the output folder.

    progress: whether to show a progress line; None: if standard error is a terminal.
    Raises MergeError (ConfigError, CheckpointError, OutputError, WorkError), each listing all problems found. If no point
    meets the rule by which one is picked, the report and the picture are written all the same.
    """
    file = read_file(asked.file)
    attempt = Attempts()
    spec = asked.applied(sweep_spec(file), attempt)
    attempt(check_packages)
    asked.check(spec, file, attempt)
    merger = Merger()
    space = cast(RecipeSpace | AlignmentSpace | None, attempt(space_of, file.text, file.where, merger))
    points = attempt(_points, space) if space is not None else None
    if space is not None and points:
        attempt(_check_points, space, points, spec, merger)
        if spec.pick is not None:
            attempt(spec.pick.check, list(_inputs(space, points, spec)))
    attempt(evaluator_of, asked, file, spec)
    files: Sequence[str] | None = None
    if space is not None and points and not attempt.errors:
        files = attempt(check_best, asked.output, space.recipe(points[0]))
    attempt.finish()
    assert space is not None
    assert points is not None
    for note in getattr(space, "notes", ()):
        log.warning("%s", note)
    scoring = Scoring(asked, file, spec)
    try:
        scoring.open({"genes": [gene.name for gene in space.genes]}, "sweep", files or ())
        try:
            outcome, refused = _swept(spec, space, points, scoring, progress)
        finally:
            scoring.journal.close()
    finally:
        scoring.close()
    if outcome.picked is not None:
        write_best(asked.output, space.recipe(outcome.picked.values))
        result = (f"the result ({outcome.picked.title})", outcome.picked)
        write_card(asked.output, spec, [*((one.title, one) for one in outcome.inputs), result], outcome.reported)
    if outcome.picked is not None or not os.path.exists(os.path.join(asked.output, BEST)):  # else that of another rule stays
        write_report(asked.output, sweep_report(outcome))
        draw(asked.output, outcome)
    if refused is not None:
        raise refused
    return outcome


def _swept(
    spec: SweepSpec,
    space: RecipeSpace | AlignmentSpace,
    points: Sequence[Values],
    scoring: Scoring,
    progress: bool | None,
) -> tuple[SweepOutcome, MergeError | None]:
    """Score the inputs and all points, and pick one; with the error that says so if none meets the rule."""
    started = time.monotonic()
    inputs = _scored_inputs(spec, space, points, scoring)
    by_name = {one.path: one.known for one in inputs} | {one.title: one.known for one in inputs}
    if spec.pick is not None:
        check_references(spec.pick, spec.objectives, by_name)
    scored = _scored_points(space, points, scoring, progress)
    check_some(scored, "points")
    known = [one for one in scored if not one.known.error]
    tax = None
    if spec.alignment is not None:
        ends = (by_name[PRE].metrics, by_name[ALIGNED].metrics)
        tax = Tax(spec.objectives, spec.alignment.reward, *ends)
    front = [known[place] for place in best(losses([one.known for one in known], spec.objectives))]
    refused, chosen = None, None
    try:
        chosen = picked(known, front, spec.objectives, spec.pick, by_name)
    except MergeError as error:
        refused = error
    reported = [*inputs, *front, *([chosen] if chosen and chosen not in front else [])]
    outcome = SweepOutcome(
        spec=spec,
        space=space,
        inputs=inputs,
        points=scored,
        front=front,
        picked=chosen,
        tax=tax,
        reported=scoring.report(reported, [*scored, *inputs]),
        seconds=time.monotonic() - started,
    )
    return outcome, refused


def _scored_inputs(
    spec: SweepSpec, space: RecipeSpace | AlignmentSpace, points: Sequence[Values], scoring: Scoring
) -> list[Scored]:
    """Return the models that are merged, scored as they are. Raises ConfigError if that fails where it is needed."""
    named_inputs = _inputs(space, points, spec)
    if spec.alignment is not None:
        named_inputs = {name: named_inputs[name] for name in (PRE, ALIGNED)}
    found = scoring.score_models("baselines", [Scored(name, None, path=path) for name, path in named_inputs.items()])
    failed = [one for one in found if one.known.error]
    if failed and (len(failed) == len(found) or spec.alignment is not None):
        names = ", ".join(one.path for one in failed)
        raise ConfigError(f"{spec.at['objectives']}: {names} can't be scored: {reasons(failed)}; {AGAIN}")
    return found


def _scored_points(
    space: RecipeSpace | AlignmentSpace, points: Sequence[Values], scoring: Scoring, progress: bool | None
) -> list[Scored]:
    from tqdm import tqdm

    models = [
        Scored(title_of(space, values, number), None, generation=0, values=values) for number, values in enumerate(points)
    ]
    disable = not sys.stderr.isatty() if progress is None else not progress
    with tqdm(total=len(models), desc="sweeping", unit="point", disable=disable) as bar:
        return scoring.score_models("sweep", models, each=lambda _: bar.update())


def title_of(space: RecipeSpace | AlignmentSpace, values: Values, number: int) -> str:
    """Return what people call a point. number: of the point, from 0."""
    if isinstance(space, AlignmentSpace):
        return space.title(values)
    simplexes = {gene.simplex for gene in space.genes}
    if len(simplexes) == 1 and "" not in simplexes:
        return f"weights {' '.join(f'{value:g}' for value in values)}"  # in the order of the models
    if len(values) > LONGEST:
        return f"point {number}"
    return ", ".join(f"{name} {value}" for name, value in named(space, values).items())


def _points(space: RecipeSpace | AlignmentSpace) -> list[Values]:
    return space.points() if isinstance(space, AlignmentSpace) else grid(space)


def _inputs(space: RecipeSpace | AlignmentSpace, points: Sequence[Values], spec: SweepSpec) -> dict[str, str]:
    """Return the paths of the models that are merged, by their names: pre, aligned and the paths, or only the paths."""
    if spec.alignment is not None:
        pre, aligned = spec.alignment.pre, spec.alignment.aligned
        ends = {PRE: pre, ALIGNED: aligned}
        return ends | {path: path for path in (pre, aligned) if path not in ends}
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


def check_packages() -> None:
    """Check that the packages that a sweep needs are installed. Raises ConfigError."""
    if missing := [name for name in NEEDS if find_spec(name) is None]:
        raise ConfigError(f'a sweep needs {" and ".join(missing)}: python -m pip install "paddle_merge[search]"')
