"""Define what a search found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..records import record
from .contract import Scores
from .gene import Values
from .job import Result
from .space import Space
from .spec import SearchSpec


@record(frozen=True)
class Scored:
    """A model with what it scored on the search split.

    result: None until it is scored. values: of a candidate; path: of a checkpoint; recipe: of a merge that no space makes,
    in YAML. round: of a race, the last one it was in.
    """

    title: str
    result: Result | None
    generation: int = -1
    values: Values = ()
    path: str = ""
    round: int = 0
    recipe: str = ""

    @property
    def identity(self) -> tuple[str, str, Values]:
        """What is equal for the same model under other titles."""
        return self.path, self.recipe, self.values

    @property
    def known(self) -> Result:
        assert self.result is not None
        return self.result


@record(frozen=True)
class Outcome:
    """What a search found.

    candidates: all, in the order in which they were asked for. finalists: those that were scored in full. front: the
    finalists that no other one beats, `best` first. baselines: the inputs, the uniform merge and the tuned uniform merge.
    reported: results on the report split, by title. first: of a search in two parts, what the first one found, from which
    this one has the values of everything but paths.
    """

    spec: SearchSpec
    space: Space
    optimizer: str
    candidates: Sequence[Scored]
    finalists: Sequence[Scored]
    best: Scored
    front: Sequence[Scored]
    baselines: Sequence[Scored]
    reported: Mapping[str, Result]
    seconds: float
    first: Outcome | None = None


def standard_error(result: Result, metric: str) -> float | None:
    """Return the standard error of a metric over the samples that were scored; None if it isn't known."""
    return Scores(result.metrics, result.samples).error(metric)
