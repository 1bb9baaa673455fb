"""Show models side by side as text, Markdown and JSON."""

from __future__ import annotations

import os
from typing import Any

from ...checkpoints.adapters import short_specs
from ...drawing.markdown import escaped as markdown_text
from ...drawing.markdown import table as markdown_table
from ...parsing import one_line
from ...run.output.card_results import CardResult
from ...search.evaluate import Evaluated, Evaluation
from ...version import __version__
from ..tables import count, number, table

ARROWS = {"maximize": "\u2191", "minimize": "\u2193"}  # the better direction, behind the names of objectives


def lines(found: Evaluation) -> list[str]:
    """Return a table, and the reasons of failures below it."""
    made = table(_headings(found), [_cells(found, row) for row in found.rows])
    failures = [f"{one_line(row.model)} failed: {one_line(row.result.error)}" for row in found.failed]
    return [*made, "", *failures, _caption(found)]


def markdown(found: Evaluation, reasons: bool = True) -> str:
    """Return the same as Markdown. Models are called by their names on a hub, or the last parts of their paths.

    reasons: of failures; without them for what is published, since they tell paths.
    """
    names = short_specs([row.model for row in found.rows])
    rows = [[name, *_cells(found, row)[1:]] for name, row in zip(names, found.rows, strict=True)]
    failed = [(name, row.result.error) for name, row in zip(names, found.rows, strict=True) if row.result.error]
    failures = [f"- {markdown_text(name)} failed: {markdown_text(error)}" for name, error in failed if reasons]
    return "\n".join(
        [
            markdown_table([_headings(found), *rows]),
            *("", *failures, *([""] if failures else [])),
            f"{markdown_text(_caption(found))}.",
        ]
    )


def card_result(found: Evaluation, row: Evaluated, file: str) -> CardResult:
    """Return what the card of one of the models gets: its scores, and the table. file: the name of the one that says how
    models are scored, which tells evaluations without samples apart."""
    data = os.path.basename(found.data) if found.data else file
    return CardResult(found.kind, data, found.split, markdown(found, reasons=False), row.result.metrics)


def as_json(found: Evaluation) -> dict[str, Any]:
    """Return everything as JSON values."""
    return {
        "evaluator": found.kind,
        "split": found.split,
        "data": found.data,
        "samples": found.samples,
        "seed": found.seed,
        "objectives": dict(found.objectives),
        "models": [_row(row) for row in found.rows],
    }


def _row(row: Evaluated) -> dict[str, Any]:
    result = row.result
    told: dict[str, Any] = {"model": row.model}
    if result.error:
        told["error"] = result.error
    else:
        told["metrics"] = dict(result.metrics)
        errors = {name: error for name in result.metrics if (error := row.error(name)) is not None}
        told |= {"standard_errors": errors} if errors else {}
    return told | {"seconds": round(result.seconds, 3)} | ({"cost": dict(result.cost)} if result.cost else {})


def _headings(found: Evaluation) -> list[str]:
    arrows = {name: f" {ARROWS[direction]}" for name, direction in found.objectives.items()}
    return ["model", *(f"{name}{arrows.get(name, '')}" for name in found.metrics), "seconds", *_costs(found)]


def _costs(found: Evaluation) -> list[str]:
    return list(dict.fromkeys(name for row in found.rows for name in row.result.cost))


def _cells(found: Evaluation, row: Evaluated) -> list[str]:
    result = row.result
    scores = ["failed" if result.error else _score(row, name) for name in found.metrics] or ["failed"]
    costs = [_cost(result.cost.get(name)) for name in _costs(found)]
    return [os.path.normpath(row.model), *scores[: len(found.metrics)], f"{result.seconds:.1f}", *costs]


def _score(row: Evaluated, name: str) -> str:
    """Return a metric with its standard error, such as 0.7123 +- 0.0045."""
    value, error = row.result.metrics.get(name), row.error(name)
    return number(value) if value is None or error is None else f"{number(value)} \u00b1 {error:.2g}"


def _cost(value: float | None) -> str:
    return "-" if value is None else count(int(value)) if value == int(value) else number(value)


def _caption(found: Evaluation) -> str:
    samples = "" if found.samples is None else f", {count(found.samples, 'sample')}"
    data = f" ({os.path.basename(found.data)}{samples})" if found.data else ""
    return f"{found.kind} on the {found.split} split{data}, seed {found.seed}, by paddle_merge {__version__}"
