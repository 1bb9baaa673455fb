"""Draw the relative change of each layer. This needs matplotlib, which is not a dependency of the package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...drawing.png import png
from ...errors import OutputError


def plot(report: Mapping[str, Any], path: str) -> None:
    """Write a PNG with a chart for each stack of layers. Raises OutputError.

    A chart shows ||A - B|| / ||A|| over the layers, for all tensors of a layer together and for each kind of tensor.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    stacks = list(dict.fromkeys(row["stack"] for row in report["layers"]))
    figure = Figure(figsize=(10, 1 + 4.5 * len(stacks)), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle("Relative change from A to B, by layer")
    for axes, stack in zip(figure.subplots(len(stacks), squeeze=False)[:, 0], stacks, strict=True):
        rows = sorted((row for row in report["layers"] if row["stack"] == stack), key=lambda row: row["layer"])
        numbers = [row["layer"] for row in rows]
        kinds = list(dict.fromkeys(kind for row in rows for kind in row["relative_by_kind"]))
        for position, kind in enumerate(kinds):
            values = [row["relative_by_kind"].get(kind) for row in rows]
            line = "-" if position < 10 else "--" if position < 20 else ":"  # the colours repeat after ten
            axes.plot(numbers, _drawn(values), line, marker=".", linewidth=1, label=kind)
        axes.plot(numbers, _drawn([row["relative"] for row in rows]), "k", marker="o", linewidth=2, label="all tensors")
        axes.set(xlabel=f"layer of {stack}", ylabel="||A - B|| / ||A||")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend(bbox_to_anchor=(1.01, 1), loc="upper left", fontsize="small")
    try:
        with open(path, "wb") as file:
            file.write(png(figure))
    except OSError as error:
        raise OutputError(f"--plot {path}: can't be written ({error.strerror})") from None


def _drawn(values: list[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]
