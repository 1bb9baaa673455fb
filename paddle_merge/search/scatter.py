"""Draw what a sweep found: the first objective against every other one, or against what was swept. This needs matplotlib."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from typing import Any

from ..drawing.png import png
from ..errors import OutputError
from .outcome import Scored
from .output import SWEEP
from .report.figures import plain
from .sweep_output import SweepOutcome, values_of

_MARKERS = "osD^vP*X"


def draw(folder: str, outcome: SweepOutcome) -> None:
    """Write the picture into the folder. Raises OutputError."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    first, *others = _order(outcome)
    figure = Figure(figsize=(1 + 5.5 * max(len(others), 1), 5), layout="constrained")
    FigureCanvasAgg(figure)
    if outcome.sides:
        figure.suptitle(textwrap.fill(plain(outcome.sides), 75), fontsize="medium")
    known = [one for one in outcome.points if not one.known.error]
    for axes, other in zip(figure.subplots(1, max(len(others), 1), squeeze=False)[0], others or [""], strict=True):
        if other:
            _objectives(axes, outcome, known, first, other)
        else:
            _values(axes, outcome, known, first)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    path = os.path.join(folder, SWEEP)
    try:
        with open(path, "wb") as file:
            file.write(png(figure))
    except OSError as error:
        raise OutputError(f"{path}: can't be written ({error.strerror})") from None


def _order(outcome: SweepOutcome) -> list[str]:
    """Return the objectives, the reward first."""
    names = list(outcome.spec.objectives)
    reward = outcome.tax.reward if outcome.tax is not None else names[0]
    return [reward, *(name for name in names if name != reward)]


def _objectives(axes: Any, outcome: SweepOutcome, known: Sequence[Scored], first: str, other: str) -> None:
    """Draw one objective against another one: the points, the front joined, the models, and what is picked."""

    def at(scored: Sequence[Scored]) -> tuple[list[float], list[float]]:
        return [one.known.metrics[first] for one in scored], [one.known.metrics[other] for one in scored]

    groups: dict[str, list[Scored]] = {}
    for one in known:
        groups.setdefault(str(one.values[0]) if outcome.tax is not None else "points", []).append(one)
    for marker, (name, its) in zip(_MARKERS, groups.items(), strict=False):
        axes.plot(*at(its), marker, markersize=5, alpha=0.7, label=plain(name))
    front = sorted(outcome.front, key=lambda one: (one.known.metrics[first], one.known.metrics[other]))
    axes.plot(*at(front), "-", color="black", linewidth=1, label="front")
    for one in outcome.inputs:
        if not one.known.error:
            axes.plot(*at([one]), "s", color="black", markersize=9, fillstyle="none")
            place = one.known.metrics[first], one.known.metrics[other]
            axes.annotate(plain(os.path.basename(one.title) or one.title), place, (6, 6), textcoords="offset points")
    if outcome.picked is not None:
        axes.plot(*at([outcome.picked]), "o", color="red", markersize=13, fillstyle="none", label="picked")
    labels = [plain(f"{metric} ({outcome.spec.objectives[metric]})") for metric in (first, other)]
    axes.set(xlabel=labels[0], ylabel=labels[1])


def _values(axes: Any, outcome: SweepOutcome, known: Sequence[Scored], metric: str) -> None:
    """Draw the only objective against the first number that was swept, a line for each combination of the others."""
    tables = [values_of(outcome.space, one.values) for one in known]
    numeric = [name for name in tables[0] if not any(isinstance(its[name], str | bool) for its in tables)]
    name = (numeric or list(tables[0]))[0]
    lines: dict[str, list[tuple[Any, float]]] = {}
    for one, its in zip(known, tables, strict=True):
        label = ", ".join(f"{other} {value}" for other, value in its.items() if other != name)
        lines.setdefault(label, []).append((its[name], one.known.metrics[metric]))
    for number, (label, places) in enumerate(lines.items()):
        shown = plain(label or metric) if number < 10 else None  # more would fill the picture
        axes.plot([_place(x) for x, _ in places], [y for _, y in places], "o-", label=shown)
    for one in outcome.inputs:
        if not one.known.error:
            axes.axhline(one.known.metrics[metric], color="gray", linewidth=0.8, linestyle=":")
            place = 0.01, one.known.metrics[metric]
            axes.annotate(plain(one.title), place, xycoords=("axes fraction", "data"), fontsize="small")
    if outcome.picked is not None:
        x = _place(values_of(outcome.space, outcome.picked.values)[name])
        axes.plot(
            [x], [outcome.picked.known.metrics[metric]], "o", color="red", markersize=13, fillstyle="none", label="picked"
        )
    axes.set(xlabel=plain(name), ylabel=plain(f"{metric} ({outcome.spec.objectives[metric]})"))


def _place(value: Any) -> Any:
    """Return where a value is on an axis: words are places of their own."""
    return plain(str(value)) if isinstance(value, str | bool) else value
