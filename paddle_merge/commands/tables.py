"""Plain tables of a hundred columns."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

WIDTH = 100


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1, indent: int = 0) -> list[str]:
    """Lines: columns as wide as they need, the first `left` of them flush left, the others flush right; if lines would be
    longer than WIDTH, the widest of the left ones are shortened."""
    cells = [[shown(cell) for cell in row] for row in (headings, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]
    lines = []
    for _ in range(indent + sum(widths) + 2 * (len(widths) - 1) - WIDTH):
        widest = widths.index(max(widths[:left]))
        widths[widest] = max(widths[widest] - 1, 8)
    for row in cells:
        words = [
            f"{shorten(cell, width):<{width}}" if column < left else f"{cell:>{width}}"
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append((" " * indent + "  ".join(words)).rstrip())
    return lines


def facts(rows: Sequence[tuple[str, str]], indent: int) -> list[str]:
    """Lines: names, and behind them what is said of them, over as many lines as it takes."""
    edge = max(len(name) for name, _ in rows) + indent + 2
    lines = []
    for name, text in rows:
        pieces = textwrap.wrap(shown(text), WIDTH - edge, break_on_hyphens=False) or [""]
        lines.append((" " * indent + name).ljust(edge) + pieces[0])
        lines += [" " * edge + piece for piece in pieces[1:]]
    return lines


def shorten(text: str, width: int) -> str:
    """The end of a text too long for `width`: where names differ."""
    return text if len(text) <= width else f"...{text[len(text) - width + 3 :]}"


def shown(text: str) -> str:
    """One line that a terminal shows as it is."""
    return text if text.isprintable() else repr(text)[1:-1]


def count(number: int) -> str:
    return f"{number:,}"


def size(nbytes: int) -> str:
    """Decimal: 988.1 MB."""
    for power, unit in ((3, "GB"), (2, "MB"), (1, "kB")):
        if nbytes >= 1000**power:
            return f"{nbytes / 1000**power:.1f} {unit}"
    return f"{nbytes} B"


def number(value: float | None) -> str:
    """Four significant digits; - for what isn't defined."""
    return "-" if value is None else f"{value:.4g}"


def percent(fraction: float | None) -> str:
    """Of what isn't quite 0 or 100 %, never that."""
    if fraction is None:
        return "-"
    for digits in (1, 4, 7):
        text = f"{100 * fraction:.{digits}f}"
        if (float(text) in (0, 100)) == (fraction in (0, 1)):
            return f"{text}%"
    return ">99.9999%" if fraction > 0.5 else "<0.0001%"
