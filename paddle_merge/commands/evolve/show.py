"""Show what a search found as text."""

from __future__ import annotations

from ...search.output import Outcome, Scored


def lines(outcome: Outcome) -> list[str]:
    """Return a table of the best candidate and the baselines on both splits."""
    metrics = list(outcome.spec.objectives)
    shown = [*outcome.baselines, outcome.best]
    header = ["", *(f"{name} (search)" for name in metrics), *(f"{name} (report)" for name in metrics if outcome.reported)]
    rows = [header, *([one.title, *_cells(outcome, one, metrics)] for one in shown)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    failed = sum(bool(one.known.error) for one in outcome.candidates)
    said = f"{len(outcome.candidates)} candidates by {outcome.optimizer} in {outcome.seconds:.1f} s"
    return [*table, "", said + (f"; {failed} failed" if failed else "")]


def _cells(outcome: Outcome, one: Scored, metrics: list[str]) -> list[str]:
    cells = [_number(one.known.metrics.get(name)) for name in metrics]
    if outcome.reported:
        found = outcome.reported[one.title]
        cells += [_number(found.metrics.get(name)) for name in metrics]
    return cells


def _number(value: float | None) -> str:
    return "failed" if value is None else f"{value:.4g}"
