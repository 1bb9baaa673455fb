"""Arrange the scores of a search for charts: over its candidates, and of the best recipe by model and layer."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ...recipe.recipe import Value
from ...records import record
from ..gene import Gene, Values
from ..outcome import Outcome, Scored


class Point(NamedTuple):
    """A point of a chart. title: what people are told about it."""

    x: float
    y: float
    title: str = ""


@record(frozen=True)
class History:
    """One objective over the candidates of a search, as points (candidate, score). Those that failed are left out.

    full: candidates that were scored on all samples; partial: those that a race eliminated before. best: where a candidate
    that was scored in full was better than all before it, and the last candidate. means: of each generation, at its middle.
    levels: the scores of the best input and the uniform merges, whose x means nothing. frame: the lowest and highest score
    that is worth drawing.
    """

    metric: str
    direction: str
    full: Sequence[Point]
    partial: Sequence[Point]
    best: Sequence[Point]
    means: Sequence[Point]
    levels: Sequence[Point]
    frame: tuple[float, float]


def history(outcome: Outcome, metric: str) -> History:
    """Return one objective over the candidates. metric: its name."""
    direction = outcome.spec.objectives[metric]
    sign = 1.0 if direction == "maximize" else -1.0
    last = max(one.round for one in outcome.candidates)
    full, partial, best = list[Point](), list[Point](), list[Point]()
    generations: dict[int, list[Point]] = {}
    for number, one in enumerate(outcome.candidates):
        if one.known.error:
            continue
        value = one.known.metrics[metric]
        point = Point(number, value, f"{one.title}: {value:.6g}")
        (full if one.round == last else partial).append(point)
        generations.setdefault(one.generation, []).append(point)
        if one.round == last and (not best or sign * value > sign * best[-1].y):
            best.append(point)
    if best and best[-1].x < len(outcome.candidates) - 1:
        best.append(Point(len(outcome.candidates) - 1, best[-1].y, best[-1].title))
    means = []
    for number, its in generations.items():
        mean = _mean([one.y for one in its])
        means.append(Point(_mean([one.x for one in its]), mean, f"mean of generation {number}: {mean:.6g}"))
    levels = _levels(outcome, metric, sign)
    frame = _frame([one.y for one in [*full, *partial]], [one.y for one in [*best[-1:], *levels]])
    return History(metric, direction, full, partial, best, means, levels, frame)


def _levels(outcome: Outcome, metric: str, sign: float) -> list[Point]:
    """Return the best input and the uniform merges, with their scores."""
    known = [(one, one.known.metrics[metric]) for one in outcome.baselines if metric in one.known.metrics]
    inputs = sorted((pair for pair in known if pair[0].path), key=lambda pair: -sign * pair[1])
    chosen = [Point(0, value, "the best input") for _, value in inputs[:1]]
    return [*chosen, *(Point(0, value, one.title.partition(" (")[0]) for one, value in known if not one.path)]


def _frame(values: Sequence[float], always: Sequence[float]) -> tuple[float, float]:
    """Return the range to draw: of nine tenths of the values, so that a few very bad ones don't hide the rest, and of those
    that are always drawn."""
    ranked = sorted(values)
    kept = ranked[len(ranked) // 20 : len(ranked) - len(ranked) // 20]
    return min([*kept, *always]), max([*kept, *always])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


@record(frozen=True)
class Heat:
    """A parameter of the best recipe by model and layer.

    values[model][layer]: within low and high; True and False are 1 and 0; None: it isn't searched, or has no effect. form:
    the format of the numbers. by: what a column is: "layer", or "group of layers".
    """

    parameter: str
    models: Sequence[str]
    values: Sequence[Sequence[float | None]]
    low: float
    high: float
    form: str = "{:.2f}"
    by: str = "layer"


def heats(genes: Sequence[Gene], values: Values) -> tuple[list[Heat], list[tuple[str, str, str]]]:
    """Return what varies by layer as Heats, and of all other genes (name, values it may have, its value)."""
    groups: dict[str, list[tuple[Gene, Value]]] = {}
    for gene, value in zip(genes, values, strict=True):
        groups.setdefault(gene.group, []).append((gene, value))
    maps: dict[tuple[str, str, int], dict[str, list[tuple[Gene, Value]]]] = {}
    others = []
    for group, its in groups.items():
        first = its[0][0]
        if any(gene.layer is None or isinstance(value, str) for gene, value in its):
            others.append((group, _bounds(first), ", ".join(_text(value) for _, value in its)))
            continue
        model, _, parameter = group.rpartition(": ")
        if first.name.startswith(f"{group}: "):  # a layer of a path, which is taken or not
            model, parameter = group, "layers taken"
        count = len(its) if ", group " in first.name else 0
        maps.setdefault((parameter, "group of layers" if count else "layer", count), {})[model or "all models"] = its
    return [_heat(key[0], key[1], rows, values) for key, rows in maps.items()], others


def _heat(parameter: str, by: str, rows: Mapping[str, Sequence[tuple[Gene, Value]]], values: Values) -> Heat:
    """Return a Heat. rows: model -> its genes and their values. values: of all genes."""
    pairs = [pair for its in rows.values() for pair in its]
    depth = max(int(gene.layer or 0) for gene, _ in pairs) + 1
    cells: list[list[float | None]] = [[None] * depth for _ in rows]
    for row, its in zip(cells, rows.values(), strict=True):
        for gene, value in its:
            if gene.needs is None or values[gene.needs]:
                row[int(gene.layer or 0)] = float(value)
    ends = [float(end) for gene, _ in pairs for end in (gene.choices or (gene.low, gene.high))]
    whole = all(gene.integer or isinstance(value, bool) for gene, value in pairs)
    form = "{:.0f}" if whole else "{:.2f}" if max(map(abs, ends)) >= 0.1 else "{:.1g}"
    return Heat(parameter, list(rows), cells, min(ends), max(ends), form, by)


def _bounds(gene: Gene) -> str:
    if gene.choices:
        return ", ".join(map(_text, gene.choices))
    return f"{gene.low:g} to {gene.high:g}" + (", log" if gene.log else "") + (", integer" if gene.integer else "")


def _text(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


@record(frozen=True)
class Front:
    """Two objectives against each other, as points (first, second).

    candidates: all that were scored in full. front: those that no other one beats, from left to right. best: the one that
    was picked, or none. baselines: inputs and uniform merges.
    """

    across: str
    up: str
    candidates: Sequence[Point]
    front: Sequence[Point]
    best: Sequence[Point]
    baselines: Sequence[Point]


def fronts(outcome: Outcome) -> list[Front]:
    """Return each objective against the one before it; none if there is only one."""
    names = list(outcome.spec.objectives)
    last = max(one.round for one in outcome.candidates)
    candidates = [one for one in outcome.candidates if one.round == last]
    return [
        Front(
            across,
            up,
            _pairs(candidates, across, up),
            sorted(_pairs(outcome.front, across, up)),
            _pairs([outcome.best], across, up),
            _pairs(outcome.baselines, across, up),
        )
        for across, up in itertools.pairwise(names)
    ]


def _pairs(those: Sequence[Scored], across: str, up: str) -> list[Point]:
    known = [one for one in those if {across, up} <= one.known.metrics.keys()]
    return [Point(one.known.metrics[across], one.known.metrics[up], one.title) for one in known]


def searches(outcome: Outcome) -> list[tuple[str, Outcome]]:
    """Return the parts of a search, each with what its headings end with: of a search in one part, that."""
    if outcome.first is None:
        return [("", outcome)]
    return [(", everything but paths", outcome.first), (", paths", outcome)]
