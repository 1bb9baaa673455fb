"""Draw charts as inline SVG, in the colours of the page, which has a light and a dark theme. All text is escaped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from ..records import record

CELL, ROW = 54, 18  # width and height of a cell of a heat map, in pixels
_LETTER = 7  # approximate width of a letter, in pixels
_HUGE = 1e150  # numbers beyond are drawn on the edge
_COLOURS = ("#3b82d6", "#e0702e", "#2f9e63", "#c2408f", "#8a6d1f", "#7a5bd0", "#1f9aa8", "#cf3f3f")


def heat_map(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    form: str,
    most: float,
    middle: float = 0.0,
    cell: int = CELL,
) -> str:
    """Return a heat map of values[row][column]; None is left blank.

    form: the format of numbers. most: the distance from `middle` at which the colour is strongest. Values above `middle` are
    orange, those below it blue. cell: the width of a column, in pixels.
    """
    left = 12 + _LETTER * min(40, max(map(len, rows), default=0))
    width, height = left + cell * len(columns) + 8, ROW * (len(rows) + 1) + 8
    parts = [_text(left + cell * j + cell / 2, 13, name, "middle") for j, name in enumerate(columns)]
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
                f'<g><title>{escape(name)}, {escape(columns[j])}: {escape(shown)}</title><rect x="{left + cell * j}"'
                f' y="{top}" width="{cell - 1}" height="{ROW - 1}" fill="{colour}" fill-opacity="{0.75 * share:.3f}"/>'
                f"{_text(left + cell * j + cell / 2, top + 13, shown, 'middle')}</g>"
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


@record(frozen=True)
class Series:
    """Points of an xy_chart that belong together.

    name: for the legend. points: (x, y). kind: "dots"; "pale", smaller dots of many; "rings", hollow dots; "line", dots that
    are joined; "steps", a line that keeps each y until the next x; "level", a dashed line across the chart at the y of its
    only point. titles: of each dot, shown when the mouse is over it; (): its numbers. labels: written beside each dot.
    """

    name: str
    points: Sequence[tuple[float, float]]
    kind: str = "dots"
    titles: Sequence[str] = ()
    labels: Sequence[str] = ()


def xy_chart(
    series: Sequence[Series],
    across: str,
    up: str,
    frame: tuple[float, float] | None = None,
    size: tuple[int, int] = (620, 260),
) -> str:
    """Return a chart of points and lines; later series lie above earlier ones.

    across, up: the labels of the axes. frame: the lowest and highest y that are drawn; points beyond are drawn on the edge.
    None: all are. size: of the frame in pixels.
    """
    xs = [x for one in series for x, _ in one.points if one.kind != "level"] or [0.0]
    ys = frame or [y for one in series for _, y in one.points] or [0.0]
    (left_end, right_end), (low, high) = _widened(min(xs), max(xs)), _widened(min(ys), max(ys))
    left, top, (width, height) = 72, 10, size

    def x(value: float) -> float:
        return left + width * (value - left_end) / (right_end - left_end)

    def y(value: float) -> float:
        return top + height * (high - min(max(value, low), high)) / (high - low)

    parts = []
    for value, shown in ticks(low, high, 5):
        parts.append(f'<path class="grid" d="M{left} {y(value):.1f}h{width}"/>')
        parts.append(_text(left - 6, y(value) + 4, shown, "end"))
    parts += [_text(x(value), top + height + 16, shown, "middle") for value, shown in ticks(left_end, right_end, 8)]
    parts.append(_text(left + width / 2, top + height + 34, across, "middle"))
    middle = top + height / 2
    parts.append(f'<g transform="rotate(-90 14 {middle:.0f})">{_text(14, middle, up, "middle")}</g>')
    for number, one in enumerate(series):
        colour = _COLOURS[number % len(_COLOURS)]
        parts += _drawn(one, [(x(a), y(b)) for a, b in one.points], colour, (left, left + width))
        at = top + 10 + 18 * number
        parts.append(f'<circle cx="{left + width + 22}" cy="{at - 4}" r="4" fill="{colour}"/>')
        parts.append(_text(left + width + 34, at, one.name, "start"))
    widest = max((len(one.name) for one in series), default=0)
    return _svg(left + width + 44 + _LETTER * widest, max(top + height + 44, top + 18 * len(series) + 10), parts)


def _drawn(one: Series, places: Sequence[tuple[float, float]], colour: str, sides: tuple[int, int]) -> list[str]:
    """Return the parts of a series whose points lie at these places, in pixels. sides: of the frame."""
    if one.kind == "level":
        dash = 'stroke-dasharray="6 4"'
        return [f'<path d="M{sides[0]} {b:.1f}H{sides[1]}" fill="none" stroke="{colour}" {dash}/>' for _, b in places]
    parts = []
    if one.kind in ("line", "steps") and len(places) > 1:
        joined = [f"H{a:.1f}V{b:.1f}" if one.kind == "steps" else f"L{a:.1f} {b:.1f}" for a, b in places[1:]]
        start = f"M{places[0][0]:.1f} {places[0][1]:.1f}"
        parts.append(f'<path d="{start}{"".join(joined)}" fill="none" stroke="{colour}" stroke-width="2"/>')
    seen = set()
    radius, opacity = (
        (2, ' fill-opacity="0.45"') if one.kind == "pale" else (2.5 if one.kind in ("line", "steps") else 4, "")
    )
    fill = f'fill="none" stroke="{colour}" stroke-width="2"' if one.kind == "rings" else f'fill="{colour}"{opacity}'
    for number, ((a, b), (across, up)) in enumerate(zip(places, one.points, strict=True)):
        at = f'cx="{a:.1f}" cy="{b:.1f}"'
        if at not in seen:  # of thousands, many lie in one place
            seen.add(at)
            title = one.titles[number] if one.titles else f"{one.name}: {across:g}, {up:.6g}"
            parts.append(f'<circle {at} r="{radius}" {fill}><title>{escape(title)}</title></circle>')
        if one.labels and one.labels[number]:
            parts.append(_text(a + 7, b - 5, one.labels[number], "start"))
    return parts


def ticks(low: float, high: float, count: int) -> list[tuple[float, str]]:
    """Return about `count` round numbers between two, and each as text with as many digits as tell them apart."""
    exact = (high - low) / count
    power = 10.0 ** math.floor(math.log10(exact))
    step = next((factor * power for factor in (1, 2, 5) if factor * power >= exact * 0.999), 10 * power)
    values = [number * step for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    largest = max(abs(low), abs(high))
    digits = max(1, math.ceil(math.log10(largest / step)) + 1) if largest > step else 2
    plain = step >= 1e-4 and largest < 1e7
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return [(value, f"{value:.{decimals}f}" if plain else f"{value:.{digits}g}") for value in values]


def _widened(low: float, high: float) -> tuple[float, float]:
    """Return ends a little outside of two numbers, and apart if these are equal."""
    low, high = max(low, -_HUGE), min(high, _HUGE)
    margin = 0.04 * (high - low) or 0.5 * abs(high) or 0.5
    return low - margin, high + margin


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _svg(width: int, height: int, parts: Sequence[str]) -> str:
    return f'<svg role="img" width="{width}" height="{height}" viewBox="0 0 {width} {height}">{"".join(parts)}</svg>'
