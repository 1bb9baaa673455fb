"""Search for the best recipe: ask an optimiser for candidates, score them, tell it the losses, and write the result.

Everything that is scored goes through the journal (scoring.py), so a search that goes on after it was stopped does the same
steps, without the evaluations that it has.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import Attempts, ConfigError
from . import optimizers, race
from .candidates import alone
from .contract import Evaluator
from .data import check_splits
from .evaluators import cautions, check_objectives, make
from .gene import Values
from .job import Job, Result, Setup
from .journal import Journal, Place
from .merger import Merger
from .objectives import best, losses
from .optimizers.optimizer import Optimizer, Settings
from .outcome import Outcome, Scored
from .output import check_folder, write
from .progress import Progress, check_visualdl
from .rule import parse_rule
from .scoring import Scoring
from .space import Space
from .spaces import FIRST, THEN, space_of
from .spec import File, SearchSpec, read_file, search_spec

log = logging.getLogger("paddle_merge")
UNIFORM = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # places within the bounds that the tuned uniform merge is sought at


@dataclass
class Asked:
    """What a search is asked to do besides the file.

    workers, pick, evaluator: in place of the file's. memory: bytes of inputs that each process may keep in memory. ray: the
    address of a Ray cluster that scores candidates; None: this machine does. visualdl: the folder for VisualDL's scalars;
    None: none are written.
    """

    file: str
    output: str
    resume: bool = False
    overwrite: bool = False
    workers: int | None = None
    pick: str | None = None
    memory: int = 0
    ray: str | None = None
    visualdl: str | None = None
    evaluator: Evaluator | None = field(default=None, repr=False)


def evolve(asked: Asked, progress: bool | None = None) -> Outcome:
    """Search as a file says; write the best recipe, its merge and the report into the output folder.

    progress: whether to show a progress line; None: if standard error is a terminal.
    Raises MergeError (ConfigError, CheckpointError, OutputError, WorkError), each listing all problems found.
    """
    file = read_file(asked.file)
    spec = search_spec(file)
    attempt = Attempts()
    if asked.pick is not None:
        spec = dataclasses.replace(spec, pick=attempt(parse_rule, asked.pick, "--pick", spec.objectives))
    attempt(check_splits, spec.data, file.folder)
    attempt(check_folder, asked.output, asked.resume, asked.overwrite)
    attempt(check_visualdl, asked.visualdl)
    merger = Merger()
    phases = [("", spec)] if spec.then is None else [(FIRST, spec), (THEN, spec.then)]
    spaces = [attempt(space_of, file.text, file.where, merger, phase) for phase, _ in phases]
    made = [
        attempt(_optimizer, its, space, file.where) if space is not None else None
        for (_, its), space in zip(phases, spaces, strict=True)
    ]
    for (_, its), space in zip(phases, spaces, strict=True):
        if space is not None and its.pick is not None:
            attempt(its.pick.check, space.recipe(tuple(gene.start for gene in space.genes)).sources)
    attempt.finish()
    for note in dict.fromkeys(note for space in spaces for note in getattr(space, "notes", ())):
        log.warning("%s", note)
    outcome: Outcome | None = None
    journal: Journal | None = None
    try:
        for (phase, its), space, optimizer in zip(phases, spaces, made, strict=True):
            fixed: Values = outcome.best.values if outcome is not None else ()
            space = space_of(file.text, file.where, merger, phase, fixed) if fixed else space
            assert space is not None
            assert optimizer is not None
            if asked.workers is not None:
                its = dataclasses.replace(its, workers=asked.workers)
            search = _Search(asked, file, its, space, optimizer, progress, journal, phase, fixed)
            journal = search.journal
            try:
                outcome = dataclasses.replace(search.run(merger), first=outcome)
            finally:
                search.close()
    finally:
        if journal is not None:
            journal.close()
    assert outcome is not None
    return write(asked.output, outcome)


def _optimizer(spec: SearchSpec, space: Space, where: str) -> tuple[str, Optimizer]:
    """Return the name of the optimiser, and the optimiser. Raises ConfigError."""
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


@dataclass(frozen=True)
class _Candidate:
    """A candidate that was scored in the search. number: of all candidates. round: of a race, the last one it was in."""

    number: int
    generation: int
    values: Values
    result: Result
    round: int


class _Search:
    def __init__(
        self,
        asked: Asked,
        file: File,
        spec: SearchSpec,
        space: Space,
        optimizer: tuple[str, Optimizer],
        progress: bool | None,
        journal: Journal | None = None,
        phase: str = "",
        fixed: Values = (),
    ):
        """optimizer: its name, and the optimiser. progress: as of evolve. journal: that of an earlier phase; None: it is
        begun. phase, fixed: as of space_of."""
        self._asked, self._file, self._spec, self._space = asked, file, spec, space
        setup = Setup(
            evaluation=spec.evaluate,
            data=spec.data,
            where=file.where,
            text=file.text,
            folder=file.folder,
            tensor_type=spec.tensor_type,
            device=spec.device,
            memory=asked.memory,
            phase=phase,
            fixed=fixed,
        )
        wanted = tuple(spec.objectives)
        self._optimizer_name, self._optimizer = optimizer
        self._setup = setup
        self._evaluator = asked.evaluator if asked.evaluator is not None else make(setup)
        check_objectives(self._evaluator, spec.objectives, file)
        for sentence in cautions(self._evaluator):
            log.warning("%s", sentence)
        self._scoring = Scoring(
            setup,
            wanted,
            workers=spec.workers,
            seed=spec.seed,
            evaluator=asked.evaluator,
            made=self._evaluator,
            folder=asked.output,
            ray=asked.ray,
            phase=f"{FIRST} " if phase == FIRST else "",
        )
        self._order = self._samples()
        self._scoring.open(self._header(), asked.resume, journal)
        self.journal = self._scoring.journal
        total = spec.evaluations // self._optimizer.population * self._optimizer.population
        self._progress = Progress(spec, total, progress, asked.visualdl, phase)

    def close(self) -> None:
        self._progress.close()
        self._scoring.close()

    def _header(self) -> dict[str, Any]:
        """Return what makes another search than this one. Workers make no difference."""
        return {
            "file": hashlib.sha256(self._file.text.encode("utf-8", "surrogatepass")).hexdigest(),
            "genes": [gene.name for gene in self._space.genes],
            "optimizer": self._optimizer_name,
            "seed": self._spec.seed,
        }

    def _samples(self) -> tuple[int, ...] | None:
        """Return the places of the samples of the search split in the order in which a race takes them; None if they can't
        be chosen. Raises ConfigError if they must be."""
        needed = self._spec.race is not None or self._spec.samples is not None
        if not needed:
            return None
        total = self._evaluator.count("search")
        if total is None:
            word = "race" if self._spec.race is not None else "samples"
            raise ConfigError(
                f"{self._file.where}: {word} needs an evaluator that scores chosen samples: a command with {{samples}}, or a"
                " function with count(split)"
            )
        order = race.order_of(total, self._spec.seed)
        return order[: self._spec.samples] if self._spec.samples is not None else order

    # --- the search

    def run(self, merger: Merger) -> Outcome:
        spec, started = self._spec, time.monotonic()
        found: list[_Candidate] = []
        generation = 0
        while len(found) + self._optimizer.population <= spec.evaluations:
            values = self._optimizer.ask()
            if not values:
                break
            results, rows, reached = self._generation(generation, len(found), values)
            self._optimizer.tell(rows)
            found += [
                _Candidate(len(found) + place, generation, one, results[place], reached[place])
                for place, one in enumerate(values)
            ]
            generation += 1
            self._progress.generation(found)
        finalists = self._finalists(found)
        baselines = self._baselines(merger, found)
        winners = self._winners(finalists, baselines)
        best_one = winners[0]
        reported = self._reported([best_one, *baselines])
        return Outcome(
            spec=spec,
            space=self._space,
            optimizer=self._optimizer_name,
            candidates=[
                Scored(f"candidate {one.number}", one.result, generation=one.generation, values=one.values, round=one.round)
                for one in found
            ],
            finalists=finalists,
            best=best_one,
            front=winners,
            baselines=baselines,
            reported=reported,
            seconds=time.monotonic() - started,
        )

    def _generation(
        self, generation: int, before: int, values: Sequence[Values]
    ) -> tuple[list[Result], list[tuple[float, ...]], list[int]]:
        def score(places: Sequence[int], number: int, samples: tuple[int, ...] | None) -> list[Result]:
            jobs = [
                (
                    Place("search", generation, before + place, number),
                    self._scoring.job(f"candidate {before + place}", values=values[place], samples=samples),
                )
                for place in places
            ]
            return self._score(jobs)

        order = race.shuffled(self._order, self._spec.seed, generation) if self._order is not None else None
        return race.run(len(values), self._spec.race, order, self._spec.objectives, score, self._spec.samples is None)

    def _score(self, jobs: Sequence[tuple[Place, Job]]) -> list[Result]:
        return self._scoring.score(jobs, fresh=self._progress.scored)

    def _finalists(self, found: Sequence[_Candidate]) -> list[Scored]:
        """Return the best candidates and the centre of the optimiser's distribution, scored in full."""
        spec = self._spec
        last = max(one.round for one in found)
        complete = [one for one in found if one.round == last and not one.result.error]
        if not complete:
            reasons = sorted({one.result.error for one in found if one.result.error})
            raise ConfigError(f"all {len(found)} candidates failed: {'; '.join(reasons[:3])}")
        rows = losses([one.result for one in complete], spec.objectives)
        if len(spec.objectives) > 1:
            chosen = [complete[place] for place in best(rows)]
        else:
            ranked = sorted(range(len(rows)), key=lambda place: (rows[place], place))
            chosen = list({complete[place].values: complete[place] for place in reversed(ranked)}.values())[::-1]
            chosen = chosen[: spec.finalists]
        finalists = [
            Scored(f"candidate {one.number}", one.result, one.generation, one.values, round=one.round) for one in chosen
        ]
        mean = self._optimizer.mean()
        if mean is not None and all(mean != one.values for one in finalists):
            finalists.append(Scored("the optimiser's mean", None, values=mean))
        partial = spec.samples is not None
        todo = [place for place, one in enumerate(finalists) if one.result is None or partial]
        jobs = [
            (Place("final", -1, place), self._scoring.job(finalists[place].title, values=finalists[place].values))
            for place in todo
        ]
        for place, result in zip(todo, self._score(jobs), strict=True):
            finalists[place] = dataclasses.replace(finalists[place], result=result)
        return [one for one in finalists if one.result is not None and not one.result.error] or finalists[:1]

    def _winners(self, finalists: Sequence[Scored], baselines: Sequence[Scored]) -> list[Scored]:
        """Return the finalists that no other one beats, the one that is picked first."""
        from .pick import picked

        rows = losses([one.known for one in finalists], self._spec.objectives)
        front = [finalists[place] for place in best(rows)]
        named = {one.path: one.known for one in baselines if one.path}
        first = picked(finalists, front, self._spec.objectives, self._spec.pick, named)
        return [first, *(one for one in front if one is not first)]

    def _baselines(self, merger: Merger, found: Sequence[_Candidate]) -> list[Scored]:
        """Return each input, the uniform merge, and the best of the uniform merges, scored on the search split.

        A space may have merges of its own to compare with, in place of the uniform ones.
        """
        start = tuple(gene.start for gene in self._space.genes)
        own: Sequence[tuple[str, Values]] | None = getattr(self._space, "baselines", None)
        recipes = [self._space.recipe(values) for values in ([start] if own is None else [values for _, values in own])]
        named = [(path, alone(path)) for path in dict.fromkeys(path for recipe in recipes for path in recipe.sources)]
        jobs = [(Place("baselines", -1, place), self._scoring.job(path, path=path)) for place, (path, _) in enumerate(named)]
        uniform = {start: "the uniform merge"} if own is None else {values: title for title, values in own}
        for unit in UNIFORM if own is None else ():
            values = tuple(gene.start if gene.choices else gene.value(unit) for gene in self._space.genes)
            uniform.setdefault(values, f"uniform at {unit:g} of the bounds")
        jobs += [
            (Place("baselines", -1, len(named) + place), self._scoring.job(title, values=values))
            for place, (values, title) in enumerate(uniform.items())
        ]
        results = self._score(jobs)
        inputs = [Scored(path, result, path=path) for (path, _), result in zip(named, results, strict=False)]
        merges = [
            Scored(title, result, values=values)
            for (values, title), result in zip(uniform.items(), results[len(named) :], strict=True)
        ]
        if own is not None:
            return [*inputs, *merges]
        tuned = [one for one in merges if not one.known.error]
        if not tuned:
            return [*inputs, merges[0]]
        rows = losses([one.known for one in tuned], self._spec.objectives)
        top = tuned[min(range(len(rows)), key=lambda place: (rows[place], place))]
        return [*inputs, merges[0], dataclasses.replace(top, title=f"the tuned uniform merge ({top.title})")]

    def _reported(self, scored: Sequence[Scored]) -> dict[str, Result]:
        """Return results on the report split, by title; empty if there is none."""
        if self._spec.data.report is None:
            return {}
        jobs = []
        for place, one in enumerate(scored):
            what: dict[str, Any] = {"path": one.path} if one.path else {"values": one.values}
            jobs.append((Place("report", -1, place), self._scoring.job(one.title, split="report", **what)))
        return {one.title: result for one, result in zip(scored, self._score(jobs), strict=True)}
