"""Describe what a search varies: one number or choice each, which values it may have, and where a search begins."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..recipe.recipe import Value
from ..records import record
from .ranges import spaced

DIGITS = 6  # significant digits of a number that is searched, so that recipes stay readable
Values = tuple[Value, ...]  # one per gene


@record(frozen=True)
class Gene:
    """One number or choice that a search varies.

    name: for people, such as "./math: weight, layer 3". low, high: the bounds of a number, both included. integer: whether
    only whole numbers are meant. log: whether the number's logarithm varies evenly. choices: the values of a choice, and
    then low, high, integer and log mean nothing. start: where a search begins. group: name without the layer. layer: the
    layer, or group of layers, from 0; None if there is one value for all. step: the distance of the only values that a
    number may have; 0: it may have any. likely: the probability with which a choice is its start when a search begins; None:
    all choices are equally likely. needs: the place of a choice among the genes; where that is False, this gene has no
    effect. simplex: of a weight that adds up to 1 with others, where all of them stand in the file; "" of any other gene.
    """

    name: str
    group: str
    low: float = 0.0
    high: float = 1.0
    integer: bool = False
    log: bool = False
    choices: tuple[Value, ...] = ()
    start: Value = 0.5
    layer: int | None = None
    step: float = 0.0
    likely: float | None = None
    needs: int | None = None
    simplex: str = ""

    @property
    def points(self) -> Sequence[Value]:
        """All values, if these can be listed: of a choice, of numbers with a step, and of whole numbers; else none."""
        if self.step:
            return tuple(int(number) if self.integer else number for number in spaced(self.low, self.high, self.step))
        return range(int(self.low), int(self.high) + 1) if self.integer and not self.log else self.choices

    def value(self, unit: float) -> Value:
        """Return the value at a place between 0 and 1: of a choice, each has an equal share."""
        unit = min(max(unit, 0.0), 1.0)
        if self.choices:
            return self.choices[min(int(unit * len(self.choices)), len(self.choices) - 1)]
        if self.step:
            points = self.points
            return points[min(int(unit * len(points)), len(points) - 1)]
        if self.integer and not self.log:
            return min(int(self.low + unit * (self.high - self.low + 1)), int(self.high))
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        number = low + unit * (high - low)
        number = math.exp(number) if self.log else number
        if self.integer:
            return min(max(round(number), int(self.low)), int(self.high))
        return min(max(float(f"{number:.{DIGITS}g}"), self.low), self.high)

    def place(self, value: Value) -> int:
        """Return the place of a choice among all; 1 and True are two choices."""
        return next(place for place, one in enumerate(self.choices) if type(one) is type(value) and one == value)

    def unit(self, value: Value) -> float:
        """Return a place between 0 and 1 at which `value` is the value."""
        if self.choices:
            return (self.place(value) + 0.5) / len(self.choices)
        number = float(value)
        if self.step:
            return (round((number - self.low) / self.step) + 0.5) / len(self.points)
        if self.integer and not self.log:
            return (number - self.low + 0.5) / (self.high - self.low + 1)
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        number = math.log(number) if self.log else number
        return (number - low) / (high - low)

    def admits(self, value: Value) -> bool:
        """Return whether a value is one that the gene can have."""
        if self.choices:
            return any(type(one) is type(value) and one == value for one in self.choices)
        if isinstance(value, bool | str) or (self.integer and value != int(value)):
            return False
        return value in self.points if self.step else self.low <= value <= self.high


def settled(genes: Sequence[Gene], values: Values) -> Values:
    """Return values in which genes that have no effect are at their start, so that equal candidates are equal."""
    return tuple(
        value if gene.needs is None or values[gene.needs] is not False else gene.start
        for gene, value in zip(genes, values, strict=True)
    )
