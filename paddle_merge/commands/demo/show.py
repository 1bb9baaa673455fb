"""Show the results of the demo as a table, as a chart, and in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from .data import PAGE, TEST, Digits, write
from .merges import Row

Scores = Mapping[str, Mapping[str, float]]  # row name -> place -> accuracy, from 0 to 1
HEADINGS = {
    "trained": "trained",
    "merged": "merged from the experts",
    "experiment": "experiments with one expert's task vector",
}


def mean(scores: Mapping[str, float], places: Sequence[str] | None = None) -> float:
    """Return the mean accuracy over the given places; None: over all."""
    return float(np.mean([scores[place] for place in places or list(scores)]))


def described(row: Row) -> str:
    """Return the name of a row, with the number of experts if it isn't made from all."""
    return f"{row.name} (2 experts)" if row.name == "slerp" else row.name


def table(rows: Sequence[Row], scores: Scores, places: Sequence[str]) -> str:
    """Return a table of accuracies in per cent: rows are checkpoints, columns are places."""
    columns = [*places, "average"]
    widths = [max(len(column), 5) + 2 for column in columns]
    edge = max(len(described(row)) for row in rows) + 2
    lines = [" " * edge + "".join(f"{column:>{width}}" for column, width in zip(columns, widths, strict=True))]
    kind = ""
    for row in rows:
        if row.kind != kind:
            kind = row.kind
            lines.append(f"-- {HEADINGS[kind]} ".ljust(edge + sum(widths), "-"))
        numbers = [*(scores[row.name][place] for place in places), mean(scores[row.name])]
        shown = "".join(f"{100 * number:{width}.1f}" for number, width in zip(numbers, widths, strict=True))
        lines.append(f"{described(row):{edge}}{shown}")
    return "\n".join(lines)


def picture(path: str, rows: Sequence[Row], scores: Scores, places: Sequence[str], digits: Digits) -> None:
    """Write the table as a heat map, with an example page above each column, to a PNG file."""
    tops, headings, top = [], {}, 0.0  # each kind of row has a heading; the average is set apart
    for row in rows:
        if row.kind not in headings:
            headings[row.kind] = top + 0.5
            top += 0.8
        tops.append(top)
        top += 1.0
    lefts = [*(float(number) for number in range(len(places))), len(places) + 0.2]

    figure = Figure(figsize=(3.4 + 0.95 * len(lefts), 2.4 + 0.36 * top), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle("Experts, each fine-tuned on digits in one place of the page, and their merges", weight="bold")
    samples, heat = figure.subplots(2, 1, sharex=True, height_ratios=[0.9, 0.36 * top])

    colors = ScalarMappable(Normalize(20, 100), "viridis")
    for row, top in zip(rows, tops, strict=True):
        numbers = 100 * np.array([*(scores[row.name][place] for place in places), mean(scores[row.name])])
        heat.bar(lefts, 1.0, 1.0, top, align="edge", color=colors.to_rgba(numbers), edgecolor="white", linewidth=1)
        for left, number in zip(lefts, numbers, strict=True):
            text = heat.text(left + 0.5, top + 0.5, f"{number:.1f}", ha="center", va="center")
            text.set_color("white" if number < 70 else "black")
    for kind, middle in headings.items():
        heat.text(0.03, middle, HEADINGS[kind], va="center", style="italic")
    heat.set_xticks([left + 0.5 for left in lefts], [*places, "average"])
    heat.set_yticks([top + 0.5 for top in tops], [described(row) for row in rows])
    heat.set(xlim=(0, lefts[-1] + 1), ylim=(tops[-1] + 1, 0))
    heat.set(xlabel="place of the digit on the page", ylabel="checkpoint")

    for left, place in zip(lefts, places, strict=False):
        page = write(digits.test_images[:1], place).reshape(PAGE, PAGE)
        samples.imshow(page, "gray_r", extent=(left + 0.1, left + 0.9, 1, 0), aspect="auto")
        samples.add_patch(Rectangle((left + 0.1, 0), 0.8, 1, fill=False, color="gray"))
    samples.set(ylim=(1.05, -0.05))
    samples.axis("off")
    heat.tick_params(length=0)
    heat.spines[:].set_visible(False)
    figure.colorbar(colors, ax=heat, label="accuracy on test digits, %", fraction=0.03)
    figure.savefig(path, dpi=120)


def sentences(scores: Scores, places: Sequence[str]) -> list[str]:
    """Return sentences that state the main results."""
    others = places[1:]
    target = others[0]
    expert = f"expert {target}"
    base, linear, ties = (mean(scores[name]) for name in ("base", "linear", "ties"))
    own = float(np.mean([scores[f"expert {place}"][place] for place in others]))
    best_expert = max(mean(scores[f"expert {place}"]) for place in others)
    kept, bare, full = (scores[name][target] for name in (f"10% of {target}", "10%, not rescaled", expert))
    minus = scores[f"base minus {target}"]
    rest = [place for place in places if place != target]
    error = 0.5 / TEST**0.5  # standard error of an accuracy of 0.5; it is smaller for all others
    return [
        f"Averaged over all places, the accuracy of the base is {_percent(base)}, of the best single expert"
        f" {_percent(best_expert)}, of the average of the experts (linear) {_percent(linear)}, and of TIES {_percent(ties)}:"
        f" {_against(ties - base, 'the base')}, {_against(ties - linear, 'linear')}. Task arithmetic, with a scale that must"
        f" be tuned, has {_percent(mean(scores['task arithmetic']))}.",
        f"In their own places, the experts have {_percent(own)} on average; there TIES, one model for all of these places,"
        f" has {_percent(mean(scores['ties'], others))}, and the base {_percent(mean(scores['base'], others))}.",
        f"DARE keeps random elements of a task vector: with 10% of them, rescaled, {expert} has {_percent(kept)} in its"
        f" place (with all of them: {_percent(full)}); with the same 10%, not rescaled, {_percent(bare)} (with none of them:"
        f" {_percent(scores['base'][target])}).",
        f"Subtracting that task vector from the base changes {target} from {_percent(scores['base'][target])} to"
        f" {_percent(minus[target])}, and the average of the other places from {_percent(mean(scores['base'], rest))} to"
        f" {_percent(mean(minus, rest))}.",
        f"Each number is measured on {TEST} test digits: its standard error is at most {100 * error:.1f} points.",
    ]


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}%"


def _against(difference: float, what: str) -> str:
    points = f"{100 * abs(difference):.1f} points"
    return f"{points} {'above' if difference > 0 else 'below'} {what}"
