"""Describe what a sweep found: the content of its report, and the table's rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..records import record
from .alignment import AlignmentSpace
from .gene import Values
from .job import Result
from .outcome import Scored
from .output import named, result_entry
from .space import RecipeSpace
from .sweep_spec import SweepSpec
from .tax import Tax

SIDES = "toward_aligned: 0 is {pre}, the model before alignment, and 1 is {aligned}, the aligned model"


@record(frozen=True)
class SweepOutcome:
    """What a sweep found.

    inputs: the models that are merged, scored as they are. points: all, in the order of the grid. front: the points that no
    other one beats. picked: None if none meets the rule. tax: None if the sweep isn't one between two models. reported:
    results on the report split by title: of the inputs, the front and what is picked.
    """

    spec: SweepSpec
    space: RecipeSpace | AlignmentSpace
    inputs: Sequence[Scored]
    points: Sequence[Scored]
    front: Sequence[Scored]
    picked: Scored | None
    tax: Tax | None
    reported: Mapping[str, Result]
    seconds: float

    @property
    def sides(self) -> str:
        """The sentence that says which model is which side of toward_aligned; "" if there are none."""
        asked = self.spec.alignment
        return SIDES.format(pre=asked.pre, aligned=asked.aligned) if asked is not None else ""

    def hypervolumes(self) -> dict[str, float]:
        """Return the hypervolume of the points of each method, and of all together; empty where there is none."""
        groups: dict[str, list[Scored]] = {}
        for one in self.points if self.tax is not None else ():
            if not one.known.error:
                groups.setdefault(str(one.values[0]), []).append(one)
        groups |= {"all": [one for its in groups.values() for one in its]} if len(groups) > 1 else {}
        found = {name: self._hypervolume([one.known for one in its]) for name, its in groups.items()}
        return {name: volume for name, volume in found.items() if volume is not None}

    def reported_tax(self) -> Tax | None:
        """Return the alignment tax on the report split; None if the ends weren't scored there."""
        ends = [self.reported[one.title] for one in self.inputs if one.title in self.reported]
        if self.tax is None or not ends or any(one.error for one in ends):
            return None
        pre, aligned = (one.metrics for one in ends)
        return Tax(self.tax.objectives, self.tax.reward, pre, aligned)

    def reported_hypervolume(self) -> float | None:
        """Return the hypervolume on the report split of the points that are the front on the search split."""
        tax = self.reported_tax()
        if tax is None:
            return None
        results = [self.reported[one.title] for one in self.front]
        return tax.hypervolume([one.metrics for one in results if not one.error])

    def _hypervolume(self, results: Sequence[Result]) -> float | None:
        return self.tax.hypervolume([one.metrics for one in results]) if self.tax is not None else None


def values_of(space: RecipeSpace | AlignmentSpace, values: Values) -> dict[str, Any]:
    """Return the values of a point by their names."""
    return space.named(values) if isinstance(space, AlignmentSpace) else named(space, values)


def sweep_report(outcome: SweepOutcome) -> dict[str, Any]:
    """Return the content of report.json."""

    def entry(one: Scored) -> dict[str, Any]:
        found: dict[str, Any] = {"title": one.title} | ({"path": one.path} if one.path else {})
        found |= {"values": values_of(outcome.space, one.values)} if one.values else {}
        found["search"] = result_entry(one.known)
        if outcome.tax is not None and not one.known.error:
            found["kept"] = outcome.tax.kept(one.known.metrics)
            found["bought_back"] = {
                name: outcome.tax.bought_back(name, one.known.metrics) for name in outcome.tax.capabilities
            }
        if one.title in outcome.reported:
            found["report"] = result_entry(outcome.reported[one.title])
        return found

    content: dict[str, Any] = {
        "objectives": dict(outcome.spec.objectives),
        "seed": outcome.spec.seed,
        "points": [entry(one) for one in outcome.points],
        "failed": sum(bool(one.known.error) for one in outcome.points),
        "seconds": round(outcome.seconds, 1),
        "inputs": [entry(one) for one in outcome.inputs],
        "front": [one.title for one in outcome.front],
        "pick": outcome.spec.pick.text if outcome.spec.pick is not None else None,
        "best": entry(outcome.picked) if outcome.picked is not None else None,
    }
    if outcome.tax is not None:
        content |= {"sides": outcome.sides, "reward": outcome.tax.reward, "remarks": outcome.tax.remarks()}
        content |= {"hypervolume": outcome.hypervolumes(), "report_hypervolume": outcome.reported_hypervolume()}
    return content
