"""Show what a sweep found as text."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from ...search.job import Result
from ...search.outcome import Scored
from ...search.sweep_output import SweepOutcome, values_of
from ...search.tax import Tax
from ..tables import WIDTH, number, percent, table

MOST = 40  # points, from which on only those of the front are shown


def lines(outcome: SweepOutcome) -> list[str]:
    """Return a table of the points for each split, and sentences on them."""
    shown: Sequence[Scored] = outcome.points
    if len(shown) > MOST:
        chosen = {id(one) for one in (*outcome.front, outcome.picked)}
        shown = [one for one in outcome.points if id(one) in chosen]
    results = {one.title: one.known for one in (*outcome.inputs, *shown)}
    found = _table(outcome, [*outcome.inputs, *shown], results, outcome.tax)
    if outcome.reported:
        there = [one for one in (*outcome.inputs, *shown) if one.title in outcome.reported]
        found += ["", "on the report split:", "", *_table(outcome, there, outcome.reported, outcome.reported_tax())]
    found.append("")
    for sentence in _sentences(outcome, len(shown)):
        found += textwrap.wrap(sentence, WIDTH, break_long_words=False, break_on_hyphens=False)
    return found


def _table(outcome: SweepOutcome, scored: Sequence[Scored], results: Mapping[str, Result], tax: Tax | None) -> list[str]:
    headings = ["", "point"]
    for name in outcome.spec.objectives:
        headings += [name] if tax is None else [name, "kept" if name == tax.reward else "bought back"]
    rows = [[_mark(outcome, one), one.title, *_cells(outcome, results[one.title], tax)] for one in scored]
    return table(headings, rows, left=2)


def _cells(outcome: SweepOutcome, result: Result, tax: Tax | None) -> list[str]:
    cells = []
    for name in outcome.spec.objectives:
        cells.append("failed" if result.error else number(result.metrics[name]))
        if tax is not None:
            metrics = result.metrics
            share = None if result.error else tax.kept(metrics) if name == tax.reward else tax.bought_back(name, metrics)
            cells.append(percent(share))
    return cells


def _mark(outcome: SweepOutcome, one: Scored) -> str:
    return ">" if one is outcome.picked else "*" if any(one is its for its in outcome.front) else ""


def _sentences(outcome: SweepOutcome, shown: int) -> list[str]:
    found = []
    if outcome.sides:
        found.append(f"{outcome.sides}.")
    if outcome.tax is not None:
        found.append(
            f"kept: the share of what alignment gained in {outcome.tax.reward}. bought back: the share of what it cost in a"
            " capability."
        )
        found += [f"{sentence}." for sentence in outcome.tax.remarks()]
        line = f"a straight line has {outcome.tax.straight_line():.3g}"
        if volumes := ", ".join(f"{name} {volume:.3f}" for name, volume in outcome.hypervolumes().items()):
            found.append(f"Hypervolume of the box between the two models: {volumes} ({line}).")
        there = outcome.reported_hypervolume()
        found += [f"Hypervolume of the front on the report split: {there:.3f}."] if there is not None else []
    if hidden := len(outcome.points) - shown:
        found.append(f"{hidden} points that others beat are in report.json only.")
    if failed := [one for one in outcome.points if one.known.error]:
        found.append(f"{len(failed)} of the points failed, such as {failed[0].title}: {failed[0].known.error}.")
    found.append(f"*: no other point beats it. {len(outcome.points)} points in {outcome.seconds:.1f} s.")
    if outcome.picked is not None:
        rule = f" by {outcome.spec.pick.text!r}" if outcome.spec.pick is not None else ""
        values = ", ".join(f"{name} {value}" for name, value in values_of(outcome.space, outcome.picked.values).items())
        found.append(f">: picked{rule}: {values}.")
    return found
