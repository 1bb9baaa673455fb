"""Draw charts as inline SVG, in the colours of the page, which has a light and a dark theme. All text is escaped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

CELL, ROW = 54, 18  # width and height of a cell of a heat map, in pixels
_LETTER = 7  # approximate width of a letter, in pixels
_COLOURS = ("#3b82d6", "#e0702e", "#2f9e63", "#c2408f", "#8a6d1f", "#7a5bd0", "#1f9aa8", "#cf3f3f")


def heat_map(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    form: str,
    most: float,
    middle: float = 0.0,
) -> str:
    """Return a heat map of values[row][column]; None is left blank.

    form: the format of numbers. most: the distance from `middle` at which the colour is strongest. Values above `middle` are
    orange, those below it blue.
    """
    left = 12 + _LETTER * min(40, max(map(len, rows), default=0))
    width, height = left + CELL * len(columns) + 8, ROW * (len(rows) + 1) + 8
    parts = [_text(left + CELL * j + CELL / 2, 13, name, "middle") for j, name in enumerate(columns)]
    for i, (name, row) in enumerate(zip(rows, values, strict=True)):
        top = ROW * (i + 1)
        parts.append(_text(left - 6, top + 13, name if len(name) <= 40 else f"...{name[-37:]}", "end"))
        for j, value in enumerate(row):
            if value is None:
                continue
            shown = form.format(value)
            shown = shown if any(digit in shown for digit in "123456789") else shown.lstrip("-")
            share = min(1.0, abs(value - middle) / (most or 1.0))
            colour = "var(--above)" if value >= middle else "var(--below)"
            parts.append(
                f'<g><title>{escape(name)}, {escape(columns[j])}: {escape(shown)}</title><rect x="{left + CELL * j}"'
                f' y="{top}" width="{CELL - 1}" height="{ROW - 1}" fill="{colour}" fill-opacity="{0.75 * share:.3f}"/>'
                f"{_text(left + CELL * j + CELL / 2, top + 13, shown, 'middle')}</g>"
            )
    return _svg(width, height, parts)


def line_chart(names: Sequence[str], positions: Sequence[int], values: Sequence[Sequence[float | None]], below: str) -> str:
    """Return a chart with a line for each name: values[name][position], not negative; None leaves a gap.

    The scale begins at 0, or is logarithmic if the values differ by more than a factor of 20; then 0 leaves a gap too.
    below: the label of the positions.
    """
    known = [value for row in values for value in row if value]
    most = max(known, default=1.0)
    least = max(min(known, default=1.0), most / 1e6)
    powers = range(math.floor(math.log10(least)), math.ceil(math.log10(most)) + 1) if most > 20 * least else None
    first, last = min(positions), max(positions)
    left, top, width, height = 64, 10, 620, 200

    def x(position: int) -> float:
        return left + width * (0.5 if first == last else (position - first) / (last - first))

    def y(value: float) -> float:
        if powers is None:
            return top + height * (1 - value / most)
        return top + height * (powers[-1] - math.log10(max(value, least))) / (len(powers) - 1)

    parts = []
    for value in [most * tick / 4 for tick in range(5)] if powers is None else [10.0**power for power in powers]:
        parts.append(f'<path class="grid" d="M{left} {y(value):.1f}h{width}"/>')
        parts.append(_text(left - 6, y(value) + 4, f"{value:.2g}", "end"))
    for position in sorted({positions[round(k * (len(positions) - 1) / 10)] for k in range(11)}):
        parts.append(_text(x(position), top + height + 16, str(position), "middle"))
    parts.append(_text(left + width / 2, top + height + 34, below, "middle"))
    for number, (name, line) in enumerate(zip(names, values, strict=True)):
        colour = _COLOURS[number % len(_COLOURS)]
        dash = "" if number < len(_COLOURS) else ' stroke-dasharray="5 3"'
        path, pen = "", "M"
        for position, height_of in zip(positions, line, strict=True):
            if height_of is None or (powers is not None and not height_of):
                pen = "M"
                continue
            value = height_of
            path, pen = f"{path}{pen}{x(position):.1f} {y(value):.1f}", "L"
            parts.append(
                f'<circle cx="{x(position):.1f}" cy="{y(value):.1f}" r="3" fill="{colour}"><title>{escape(name)},'
                f" {position}: {value:.4g}</title></circle>"
            )
        parts.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        at = top + 14 + 18 * number
        parts.append(f'<path d="M{left + width + 16} {at - 4}h22" stroke="{colour}" stroke-width="3"{dash}/>')
        parts.append(_text(left + width + 44, at, name, "start"))
    return _svg(left + width + 120, max(top + height + 44, top + 18 * len(names) + 10), parts)


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _svg(width: int, height: int, parts: Sequence[str]) -> str:
    return f'<svg role="img" width="{width}" height="{height}" viewBox="0 0 {width} {height}">{"".join(parts)}</svg>'
