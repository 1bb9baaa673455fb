"""Draw what a search found as PNG files, with matplotlib."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ...parsing import one_line
from ..outcome import Outcome
from .history import Front, Heat, History, Point, fronts, heats, history, searches

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUMBERED = 24  # layers up to which the numbers are written into the heat map


def draw(outcome: Outcome) -> Iterator[tuple[str, Figure]]:
    """Yield (file name, figure): score.png, front.png for several objectives, recipe.png if values vary by layer.

    Raises ImportError without matplotlib.
    """
    yield "score.png", _scores([history(one, metric) for _, one in searches(outcome) for metric in one.spec.objectives])
    if found := fronts(outcome):
        yield "front.png", _fronts(found)
    if maps := [one for _, part in searches(outcome) for one in heats(part.space.genes, part.best.values)[0]]:
        yield "recipe.png", _recipe(maps)


def _new(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _scores(histories: Sequence[History]) -> Figure:
    figure = _new(9, 3.6 * len(histories))
    for one, axes in zip(histories, figure.subplots(len(histories), 1, squeeze=False)[:, 0], strict=True):
        if one.partial:
            axes.plot(*_xy(one.partial), ".", color="tab:gray", alpha=0.4, label="scored on fewer samples")
        axes.plot(*_xy(one.full), ".", color="tab:blue", alpha=0.4, label="candidates")
        axes.plot(*_xy(one.means), color="tab:orange", label="mean of a generation")
        axes.step(*_xy(one.best), where="post", color="tab:green", linewidth=2, label="best so far")
        for style, level in zip(("--", ":", "-."), one.levels, strict=False):
            axes.axhline(level.y, linestyle=style, color="black", linewidth=1, label=plain(level.title))
        margin = 0.05 * (one.frame[1] - one.frame[0]) or 0.5
        axes.set_ylim(one.frame[0] - margin, one.frame[1] + margin)
        axes.set_xlabel("candidate")
        axes.set_ylabel(plain(one.metric))
        axes.legend(fontsize="small")
    return figure


def _fronts(found: Sequence[Front]) -> Figure:
    figure = _new(7, 5 * len(found))
    for one, axes in zip(found, figure.subplots(len(found), 1, squeeze=False)[:, 0], strict=True):
        axes.plot(*_xy(one.candidates), ".", color="tab:blue", alpha=0.4, label="candidates")
        axes.plot(*_xy(one.baselines), "o", color="black", fillstyle="none", label="inputs and uniform merges")
        for point in one.baselines:
            name = os.path.basename(point.title.rstrip("/")).partition(" (")[0]
            axes.annotate(plain(name), (point.x, point.y), xytext=(4, 4), textcoords="offset points", fontsize="small")
        axes.plot(*_xy(one.front), "o-", color="tab:green", label="front")
        axes.plot(*_xy(one.best), "*", color="tab:red", markersize=14, label="the result")
        axes.set_xlabel(plain(one.across))
        axes.set_ylabel(plain(one.up))
        axes.legend(fontsize="small")
    return figure


def _recipe(maps: Sequence[Heat]) -> Figure:
    heights = [1.2 + 0.35 * len(one.models) for one in maps]
    figure = _new(9, sum(heights))
    for one, axes in zip(maps, figure.subplots(len(maps), 1, squeeze=False, height_ratios=heights)[:, 0], strict=True):
        numbers = [[float("nan") if value is None else value for value in row] for row in one.values]
        drawn = axes.imshow(numbers, "viridis", vmin=one.low, vmax=one.high, aspect="auto")
        names = [f"...{name[-37:]}" if len(name) > 40 else name for name in one.models]
        axes.set_yticks(range(len(names)), [plain(name) for name in names])
        axes.set_xlabel(one.by)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if len(one.values[0]) <= NUMBERED:
            for (row, column), value in np.ndenumerate(np.array(numbers)):
                if np.isfinite(value):
                    colour = "white" if value < (one.low + one.high) / 2 else "black"
                    axes.text(column, row, one.form.format(value), ha="center", va="center", color=colour, fontsize="small")
        axes.set_title(plain(one.parameter))
        figure.colorbar(drawn, ax=axes, fraction=0.03)
    return figure


def _xy(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    return [one.x for one in points], [one.y for one in points]


def plain(text: str) -> str:
    """Return text in which matplotlib sees no formula, and only characters that it can draw."""
    return one_line(text).replace("$", r"\$")
