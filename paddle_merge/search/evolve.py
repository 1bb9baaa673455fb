"""Search for the best recipe: ask an optimiser for candidates, score them, tell it the losses, and write the result.

Everything that is scored goes through the journal (scoring.py), so a search that goes on after it was stopped does the same
steps, without the evaluations that it has.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Sequence

from ..errors import Attempts, ConfigError
from . import optimizers, race, simplex
from .asked import Asked
from .contract import Evaluator
from .finals import baselines, finalists, inputs_of, winners
from .gene import Values
from .job import Result
from .journal import Journal, Place
from .keys import keys_for_flags
from .merger import Merger
from .optimizers.optimizer import Optimizer, Settings
from .outcome import Outcome, Scored
from .output import check_best, write
from .progress import Progress, check_visualdl
from .scoring import Scoring, evaluator_of
from .sections import search_spec
from .space import Space
from .spaces import FIRST, THEN, space_of
from .spec import SearchSpec, read_file

log = logging.getLogger("paddle_merge")


@keys_for_flags()
def evolve(asked: Asked, progress: bool | None = None, visualdl: str | None = None) -> Outcome:
    """Search as a file says; write the best recipe, its merge and the report into the output folder.

    progress: whether to show a progress line; None: if standard error is a terminal. visualdl: the folder for VisualDL's
    scalars; None: none are written.
    Raises MergeError (ConfigError, CheckpointError, OutputError, WorkError), each listing all problems found.
    """
    file = read_file(asked.file)
    attempt = Attempts()
    spec = asked.applied(search_spec(file), attempt)
    asked.check(spec, file, attempt)
    attempt(check_visualdl, visualdl)
    merger = Merger()
    phases = [("", spec)] if spec.then is None else [(FIRST, spec), (THEN, spec.then)]
    spaces = [attempt(space_of, file.text, file.where, merger, phase) for phase, _ in phases]
    made = [
        attempt(_optimizer, its, space, file.where) if space is not None else None
        for (_, its), space in zip(phases, spaces, strict=True)
    ]
    for (_, its), space in zip(phases, spaces, strict=True):
        if space is not None and its.pick is not None:
            attempt(its.pick.check, inputs_of(space))
    evaluator = attempt(evaluator_of, asked, file, spec)
    if len(spec.objectives) > 1 and spec.finalists != SearchSpec.finalists:
        log.warning("finalists has no effect with several objectives: the whole front is scored in full")
    orders = [attempt(_samples, its, evaluator, file.where) if evaluator is not None else None for _, its in phases]
    del evaluator  # it may hold much memory, and whoever scores has one of its own
    files: Sequence[str] | None = None
    if spaces[-1] is not None and not attempt.errors:
        files = attempt(check_best, asked.output, spaces[-1].recipe(tuple(gene.start for gene in spaces[-1].genes)))
    attempt.finish()
    for note in dict.fromkeys(note for space in spaces for note in getattr(space, "notes", ())):
        log.warning("%s", note)
    outcome: Outcome | None = None
    journal: Journal | None = None
    try:
        for (phase, its), space, optimizer, order in zip(phases, spaces, made, orders, strict=True):
            fixed: Values = outcome.best.values if outcome is not None else ()
            space = space_of(file.text, file.where, merger, phase, fixed) if fixed else space
            assert space is not None
            assert optimizer is not None
            scoring = Scoring(asked, file, its, phase, fixed)
            try:
                scoring.open({"genes": [gene.name for gene in space.genes]}, optimizer[0], files or (), journal)
                journal = scoring.journal
                population = optimizer[1].population
                shown = Progress(its, its.evaluations // population * population, progress, visualdl, phase)
                scoring.fresh = shown.scored
                try:
                    found = _search(its, space, optimizer, order, scoring, shown)
                finally:
                    shown.close()
            finally:
                scoring.close()
            outcome = dataclasses.replace(found, first=outcome)
    finally:
        if journal is not None:
            journal.close()
    assert outcome is not None
    return write(asked.output, outcome)


def _optimizer(spec: SearchSpec, space: Space, where: str) -> tuple[str, Optimizer]:
    """Return the name of the optimiser, and the optimiser. Raises ConfigError."""
    simplex.refuse(space.genes)
    name = spec.optimizer or optimizers.suited(space.genes, len(spec.objectives))
    settings = Settings(
        seed=spec.seed,
        population=spec.population,
        sigma=spec.sigma,
        noisy=spec.noisy,
        evaluations=spec.evaluations,
        objectives=len(spec.objectives),
    )
    made = optimizers.make(name, space.genes, settings, getattr(space, "first", ()))
    if made.population > spec.evaluations:
        raise ConfigError(
            f"{where}: {spec.evaluations} evaluations are less than one generation of {name}, which has {made.population}"
            " candidates; give more evaluations, or a smaller population"
        )
    return name, made


def _samples(spec: SearchSpec, evaluator: Evaluator, where: str) -> tuple[int, ...] | None:
    """Return the places of the samples of the search split in the order in which a race takes them; None if all are used.

    Raises ConfigError if samples are to be chosen, and can't be.
    """
    if spec.race is None and spec.samples is None:
        return None
    total = evaluator.count("search")
    if total is None:
        word = "race" if spec.race is not None else "samples"
        raise ConfigError(
            f"{where}: {word} needs an evaluator that scores chosen samples: a command with {{samples}}, or a function with"
            " count(split)"
        )
    order = race.order_of(total, spec.seed)[: spec.samples]
    if spec.samples is not None and spec.samples > total:
        log.warning("samples: %d has no effect, for the search split has %d", spec.samples, total)
    if spec.race is not None and spec.race.first >= len(order):
        log.warning("race: {first: %d} has no effect, for a search uses %d samples", spec.race.first, len(order))
    return order


def _search(
    spec: SearchSpec,
    space: Space,
    optimizer: tuple[str, Optimizer],
    order: tuple[int, ...] | None,
    scoring: Scoring,
    progress: Progress,
) -> Outcome:
    """Search a space, and score the result and what it is compared with. optimizer, order: as of _optimizer, _samples."""
    started = time.monotonic()
    name, searching = optimizer
    found: list[Scored] = []
    generation = 0
    while len(found) + searching.population <= spec.evaluations:
        values = searching.ask()
        if not values:
            break
        candidates, rows = _generation(spec, generation, len(found), values, order, scoring)
        if not all(one.known.error for one in candidates):  # else their losses stand for nothing, and might be the best ever
            searching.tell(rows)
        found += candidates
        generation += 1
        progress.generation(found)
    last = finalists(scoring, spec, found, searching.mean())
    others = baselines(scoring, spec, space)
    front = winners(last, others, spec)
    return Outcome(
        spec=spec,
        space=space,
        optimizer=name,
        candidates=found,
        finalists=last,
        best=front[0],
        front=front,
        baselines=others,
        reported=scoring.report([front[0], *others], [*others, *last]),
        seconds=time.monotonic() - started,
    )


def _generation(
    spec: SearchSpec,
    generation: int,
    before: int,
    values: Sequence[Values],
    order: tuple[int, ...] | None,
    scoring: Scoring,
) -> tuple[list[Scored], list[tuple[float, ...]]]:
    """Return the candidates of a generation, scored, and their losses. before: how many candidates came before them."""

    def score(places: Sequence[int], number: int, samples: tuple[int, ...] | None) -> list[Result]:
        jobs = [
            (
                Place("search", generation, before + place, number),
                scoring.job(f"candidate {before + place}", values=values[place], samples=samples),
            )
            for place in places
        ]
        return scoring.score(jobs)

    shuffled = race.shuffled(order, spec.seed, generation) if order is not None else None
    results, rows, reached = race.run(len(values), spec.race, shuffled, spec.objectives, score, spec.samples is None)
    candidates = [
        Scored(f"candidate {before + place}", result, generation, one, round=last)
        for place, (one, result, last) in enumerate(zip(values, results, reached, strict=True))
    ]
    return candidates, rows
