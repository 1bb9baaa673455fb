"""Pick one of several candidates: by a rule, or the one nearest to the best value of every objective."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..errors import ConfigError
from ..records import record
from .job import Result
from .objectives import losses
from .outcome import Scored
from .rule import BEST, Condition, Rule


@record(frozen=True)
class Bound:
    """A condition with the number that it stands for."""

    condition: Condition
    number: float

    def missed_by(self, result: Result) -> float:
        """Return by how much a result misses the bound; 0 if it meets it."""
        value = result.metrics[self.condition.metric]
        return max(0.0, self.number - value if self.condition.least else value - self.number)

    def __str__(self) -> str:
        return str(self.condition) + (f" ({self.number:.6g})" if self.condition.reference is not None else "")


def picked(
    candidates: Sequence[Scored],
    front: Sequence[Scored],
    objectives: Mapping[str, str],
    rule: Rule | None = None,
    references: Mapping[str, Result] | None = None,
) -> Scored:
    """Return the candidate that a rule picks; without a rule, that of the front which is nearest to the best value of every
    objective, each measured by its spread on the front.

    candidates: all that a rule may pick, none failed. references: what the models that the rule names scored. Raises
    ConfigError if no candidate meets the rule's conditions, with the nearest and what it misses.
    """
    if rule is None:
        return nearest_to_ideal(front, objectives)
    bounds = [_bound(one, rule, candidates, objectives, references or {}) for one in rule.conditions]
    misses = [[bound.missed_by(one.known) for bound in bounds] for one in candidates]
    meeting = [one for one, missed in zip(candidates, misses, strict=True) if not any(missed)]
    if not meeting:
        raise ConfigError(f"{rule.at}: {_nothing_meets(candidates, bounds, misses)}; give another rule with --resume --pick")
    rows = losses([one.known for one in meeting], {rule.metric: rule.direction})
    ties = losses([one.known for one in meeting], objectives)
    return meeting[min(range(len(meeting)), key=lambda place: (rows[place], ties[place], place))]


def nearest_to_ideal(front: Sequence[Scored], objectives: Mapping[str, str]) -> Scored:
    """Return the candidate that is nearest to the best value of every objective, each measured by its spread."""
    rows = np.array(losses([one.known for one in front], objectives), np.float64)
    spread = np.ptp(rows, axis=0)
    far = (rows - rows.min(axis=0)) / np.where(spread > 0, spread, 1.0)
    return front[int(np.argmin((far**2).sum(axis=1)))]


def check_references(rule: Rule, objectives: Mapping[str, str], references: Mapping[str, Result]) -> None:
    """Raise ConfigError if a model that a rule names has no number that the rule could mean."""
    for one in rule.conditions:
        if one.reference != BEST:
            _bound(one, rule, (), objectives, references)


def _bound(
    condition: Condition,
    rule: Rule,
    candidates: Sequence[Scored],
    objectives: Mapping[str, str],
    references: Mapping[str, Result],
) -> Bound:
    """Return a condition with its number. Raises ConfigError if what it refers to has none."""
    if condition.reference is None:
        return Bound(condition, condition.number)
    if condition.reference == BEST:
        best = max if objectives[condition.metric] == "maximize" else min
        value = best(one.known.metrics[condition.metric] for one in candidates)
    else:
        result = references[condition.reference]
        if result.error:
            raise ConfigError(f"{rule.at}: {condition.reference} has no {condition.metric}, for it failed: {result.error}")
        value = result.metrics[condition.metric]
    if value < 0 and condition.number != 1:
        raise ConfigError(
            f"{rule.at}: {condition.metric} of {condition.reference} is {value:.6g}, and a multiple of a negative number is"
            f" no share of it; with --resume --pick, give a number, such as {condition.metric}"
            f" {'>=' if condition.least else '<='} {value:.3g}"
        )
    return Bound(condition, condition.number * value)


def _nothing_meets(candidates: Sequence[Scored], bounds: Sequence[Bound], misses: Sequence[Sequence[float]]) -> str:
    """Return the part of a sentence that says what no candidate meets, and which one misses it by least.

    Misses of several conditions are compared as shares of what the candidates differ by.
    """
    spreads = [float(np.ptp([one.known.metrics[bound.condition.metric] for one in candidates])) or 1.0 for bound in bounds]
    worst = [max(miss / spread for miss, spread in zip(row, spreads, strict=True)) for row in misses]
    place = min(range(len(worst)), key=lambda number: (worst[number], number))
    by = " and ".join(
        f"{bound.condition.metric} by {miss:.4g}" for bound, miss in zip(bounds, misses[place], strict=True) if miss
    )
    return f"no candidate has {' and '.join(map(str, bounds))}; the nearest, {candidates[place].title}, misses {by}"
