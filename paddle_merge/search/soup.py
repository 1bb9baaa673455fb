"""Make a greedy soup: an average to which models are added in the order of their scores, each only if the score of the
average doesn't fall (Wortsman et al. 2022, Model soups, recipe 1).

All scores go through the journal (scoring.py), so a soup that was stopped goes on without scoring anything twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import Attempts, ConfigError
from ..records import record
from .asked import Asked
from .job import Result
from .objectives import losses
from .outcome import Scored
from .output import result_entry
from .scoring import Scoring, check_some, evaluator_of
from .sections import evaluation_spec
from .spec import SoupSpec, read_file

ALL, SOUP = "the average of all", "the greedy soup"


@record(frozen=True)
class Soup:
    """A greedy soup.

    singles: the models with their scores, in the order in which they were given. tried: averages, in the order in which
    they were made: number of the model that was added -> what the average scored. members: the numbers of the models that
    stayed, in ascending order. average: that of all models. reported: results on the report split, by title.
    """

    spec: SoupSpec
    singles: Sequence[Scored]
    tried: Mapping[int, Scored]
    members: Sequence[int]
    average: Scored
    reported: Mapping[str, Result]
    seconds: float

    @property
    def best(self) -> Scored:
        """The best single model."""
        return self.singles[_order(self.singles, self.spec)[0]]

    @property
    def result(self) -> Scored:
        """The average of the members."""
        kept = [one for number, one in self.tried.items() if number in self.members]
        return kept[-1] if kept else self.best


def greedy_soup(
    asked: Asked,
    titles: Sequence[str],
    files: Sequence[str],
    recipe: Callable[[Sequence[int]], str],
    config_from: str = "",
) -> Soup:
    """Return the greedy soup of models, by the evaluator and the objective of a file.

    titles: of the models. files: that hold them. recipe: makes the recipe, in YAML, of the average of models with these
    numbers. config_from: as of SoupSpec. Raises MergeError listing all problems.
    """
    file = read_file(asked.file)
    evaluation, objectives, data, seed = evaluation_spec(file)
    spec = SoupSpec(evaluation, objectives, data, seed, asked.workers or 1, config_from)
    attempt = Attempts()
    asked.check(spec, file, attempt)
    attempt(evaluator_of, asked, file, spec)
    if len(objectives) != 1:
        problem = f"a greedy soup goes by one objective; there are {', '.join(objectives)}"
        attempt(_refuse, f"{file.at('objectives')}: {problem}")
    attempt.finish()
    scoring = Scoring(asked, file, spec)
    try:
        scoring.open({"checkpoints": titles}, "greedy soup", files)
        try:
            return _made(scoring, spec, titles, recipe)
        finally:
            scoring.journal.close()
    finally:
        scoring.close()


def _made(scoring: Scoring, spec: SoupSpec, titles: Sequence[str], recipe: Callable[[Sequence[int]], str]) -> Soup:
    started = time.monotonic()
    everyone = range(len(titles))
    alone = [Scored(title, None, recipe=recipe([number])) for number, title in enumerate(titles)]
    singles = scoring.score_models("baselines", alone)
    check_some(singles, "checkpoints")
    first, *others = _order(singles, spec)
    members, tried = [first], dict[int, Scored]()
    lowest = _loss(singles[first], spec)
    for number in others:
        added = sorted([*members, number])
        names = ", ".join(titles[one] for one in added)
        average = Scored(f"the average of {names}", None, generation=len(tried), recipe=recipe(added))
        (scored,) = scoring.score_models("soup", [average], [number])
        tried[number] = scored
        if not scored.known.error and _loss(scored, spec) <= lowest:
            members, lowest = added, _loss(scored, spec)
    if tried:
        check_some(list(tried.values()), "averages")
    (average,) = scoring.score_models("baselines", [Scored(ALL, None, recipe=recipe(everyone))], [len(titles)])
    soup = Soup(spec, singles, tried, members, average, {}, time.monotonic() - started)
    named = [soup.best, average, Scored(SOUP, soup.result.result, recipe=soup.result.recipe)]
    reported = scoring.report(named, [*singles, average, *tried.values()])
    return Soup(spec, singles, tried, members, average, reported, time.monotonic() - started)


def _order(singles: Sequence[Scored], spec: SoupSpec) -> list[int]:
    """Return the numbers of the models that could be scored, the best first; of equals the last first."""
    known = [number for number, one in enumerate(singles) if not one.known.error]
    return sorted(known, key=lambda number: (_loss(singles[number], spec), -number))


def _loss(one: Scored, spec: SoupSpec) -> float:
    return losses([one.known], spec.objectives)[0][0]


def _refuse(sentence: str) -> None:
    raise ConfigError(sentence)


def soup_report(soup: Soup) -> dict[str, Any]:
    """Return the content of report.json."""

    def entry(one: Scored, **more: Any) -> dict[str, Any]:
        reported = soup.reported.get(one.title)
        said = {"title": one.title, **more, "search": result_entry(one.known)}
        return said | ({"report": result_entry(reported)} if reported is not None else {})

    return {
        "objectives": dict(soup.spec.objectives),
        "seed": soup.spec.seed,
        "members": [soup.singles[number].title for number in soup.members],
        "checkpoints": [entry(one) for one in soup.singles],
        "tried": [
            entry(one, added=soup.singles[number].title, kept=number in soup.members) for number, one in soup.tried.items()
        ],
        "average": entry(soup.average),
        "best": entry(Scored(SOUP, soup.result.result)),
        "seconds": round(soup.seconds, 1),
    }
