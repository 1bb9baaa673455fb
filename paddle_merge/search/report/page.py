"""Make an HTML page of what a search found, in one file that needs no scripts, other files, or network."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from html import escape

from ...drawing.html import document, heading, picture, safe, table
from ...drawing.svg import Series, heat_map, xy_chart
from ...version import __version__
from ..outcome import Outcome
from . import summary
from .history import Front, Heat, History, Point, fronts, heats, history, searches

CELL = 38  # width of a column of the recipe's heat maps, in pixels
FRONT = "The front: candidates that no other one beats in every objective."
BETTER = {"maximize": "higher is better", "minimize": "lower is better"}


def page(outcome: Outcome, recipe: str, folder: str) -> str:
    """Return the page. recipe: the best one, as YAML. folder: of the search."""
    return document("What the search found", _parts(outcome, recipe, folder), f"paddle_merge {__version__}")


def _parts(outcome: Outcome, recipe: str, folder: str) -> Iterator[str]:
    yield f"<p>{safe(summary.done(outcome))}.</p>"
    yield _list(summary.compared(outcome))
    yield from _table(outcome)
    yield heading("What to do next")
    yield (
        f"<p>{safe(folder)} holds the merged model, ready to load, and {summary.BEST}, its recipe. This command repeats the"
        f" merge without a search:</p>\n<pre>{safe(summary.repeat(folder))}</pre>"
    )
    for part, one in searches(outcome):
        for metric in one.spec.objectives:
            its = history(one, metric)
            yield heading(f"{metric} over the candidates{part}", _about(one, its))
            yield picture("", _over_candidates(its))
        for front in fronts(one):
            yield heading(f"{front.up} and {front.across}{part}", FRONT)
            yield picture("", _front(front))
        if len(one.front) > 1:
            yield _front_table(one)
    yield from _recipe(outcome, recipe)
    for part, one in searches(outcome):
        if not (reasons := summary.failures(one)):
            continue
        yield heading(f"Failed candidates{part}", "A failed evaluation counts as the worst score of its generation.")
        yield table(("reason", "candidates", "first"), [(why, str(count), first) for why, count, first in reasons], "words")


def _list(sentences: Sequence[str]) -> str:
    return f'<ul class="said">{"".join(f"<li>{safe(one)}</li>" for one in sentences)}</ul>' if sentences else ""


def _table(outcome: Outcome) -> Iterator[str]:
    wanted = list(outcome.spec.objectives)
    metrics = [*wanted, *(name for name in outcome.best.known.metrics if name not in wanted)]
    tables = {split: summary.table(outcome, metrics, split) for split in summary.splits(outcome)}
    about = [f"{name}: {BETTER[direction]}." for name, direction in outcome.spec.objectives.items()]
    about.append("The result and the tuned uniform merge were chosen by the search split.")
    if any(map(summary.has_errors, tables.values())):
        about.append("±: the standard error over the samples.")
    about.append("Seconds: of one evaluation.")
    yield heading("Inputs, uniform merges and the result", " ".join(about))
    for split, rows in tables.items():
        yield picture(f"On the {split} split", table(rows[0], rows[1:]))


def _about(outcome: Outcome, its: History) -> str:
    failed = len(outcome.candidates) - len(its.full) - len(its.partial)
    low, high = its.frame
    outside = sum(not low <= one.y <= high for one in [*its.full, *its.partial])
    text = f"On the search split; {BETTER[its.direction]}."
    text += " Of a race, the best are those that were scored on all samples." if its.partial else ""
    text += f" {outside} worse candidates are drawn on the edge." if outside else ""
    return text + (f" {failed} failed and are left out." if failed else "")


def _over_candidates(its: History) -> str:
    series = [
        _series("scored on fewer samples", its.partial, "pale"),
        _series("candidates", its.full, "pale"),
        _series("mean of a generation", its.means, "line"),
        _series("best so far", its.best, "steps"),
        *(Series(f"{one.title}: {one.y:.4g}", [(0, one.y)], "level") for one in its.levels),
    ]
    return xy_chart([one for one in series if one.points], "candidate", its.metric, its.frame)


def _front(front: Front) -> str:
    return xy_chart(
        [
            _series("candidates", front.candidates, "pale"),
            _series("inputs and uniform merges", front.baselines, "rings", _short(front.baselines)),
            _series("front", front.front, "line"),
            _series("the result", front.best, "dots", ["the result"] * len(front.best)),
        ],
        front.across,
        front.up,
        size=(620, 340),
    )


def _short(points: Sequence[Point]) -> list[str]:
    """Return titles without what is in parentheses; of paths the last parts."""
    return [os.path.basename(one.title.rstrip("/")).partition(" (")[0] for one in points]


def _series(name: str, points: Sequence[Point], kind: str, labels: Sequence[str] = ()) -> Series:
    return Series(name, [(one.x, one.y) for one in points], kind, [one.title for one in points], labels)


def _front_table(outcome: Outcome) -> str:
    metrics = list(outcome.spec.objectives)
    ranked = sorted(outcome.front, key=lambda one: one.known.metrics.get(metrics[0], 0.0))
    titles = [f"{one.title} (the result)" if one is outcome.best else one.title for one in ranked]
    rows = [
        (title, *(summary.cell(one.result, name) for name in metrics)) for title, one in zip(titles, ranked, strict=True)
    ]
    return table(("", *metrics), rows)


def _recipe(outcome: Outcome, recipe: str) -> Iterator[str]:
    yield heading("The best recipe", f"What was searched, and the whole recipe as in {summary.BEST}.")
    for _, part in searches(outcome):
        maps, others = heats(part.space.genes, part.best.values)
        for one in maps:
            yield picture(f"{one.parameter} by model and {one.by}: {one.low:g} to {one.high:g}", _heat(one))
        if others:
            yield table(("", "searched", "best"), others, "words")
    yield f"<pre>{escape(recipe)}</pre>"


def _heat(one: Heat) -> str:
    middle = 0.0 if one.low < 0 < one.high else one.low
    most = max(abs(one.low - middle), abs(one.high - middle))
    columns = [str(number) for number in range(len(one.values[0]))]
    return heat_map(one.models, columns, one.values, one.form, most, middle, CELL)
