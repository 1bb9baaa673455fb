"""Format tables and numbers as plain text, up to 100 columns wide."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Sequence

from ..parsing import one_line

WIDTH = 100


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1, indent: int = 0) -> list[str]:
    """Return the lines of a table whose columns are as wide as their cells.

    The first `left` columns are aligned left, the others right. If the table is wider than WIDTH, the widest of the left
    columns are shortened. A row with a single cell is a heading for the rows below it, and doesn't count for the widths.
    """
    cells = [[one_line(cell) for cell in row] for row in (headings, *rows)]
    full = [row for row in cells if len(row) > 1 or len(headings) == 1]
    widths = [max(breadth(row[column]) for row in full) for column in range(len(headings))]
    lines = []
    for _ in range(indent + sum(widths) + 2 * (len(widths) - 1) - WIDTH):
        widest = widths.index(max(widths[:left]))
        widths[widest] = max(widths[widest] - 1, 8)
    for row in cells:
        if len(row) < len(headings):
            lines.append((" " * indent + row[0]).rstrip())
            continue
        words = [
            _padded(shorten(cell, width), width, "<") if column < left else _padded(cell, width, ">")
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append((" " * indent + "  ".join(words)).rstrip())
    return lines


def facts(rows: Sequence[tuple[str, str]], indent: int) -> list[str]:
    """Return lines of names with a text behind each, wrapped to WIDTH."""
    edge = max(len(name) for name, _ in rows) + indent + 2
    lines = []
    for name, text in rows:
        pieces = textwrap.wrap(one_line(text), WIDTH - edge, break_on_hyphens=False) or [""]
        lines.append((" " * indent + name).ljust(edge) + pieces[0])
        lines += [" " * edge + piece for piece in pieces[1:]]
    return lines


def shorten(text: str, width: int) -> str:
    """Return a text, of a longer one than `width` the end, where names of tensors differ."""
    if breadth(text) <= width:
        return text
    end = text[max(0, len(text) - width + 3) :]
    while breadth(end) > width - 3:
        end = end[1:]
    return f"...{end}"


def breadth(text: str) -> int:
    """Return how many columns of a terminal a text takes: Chinese characters take two."""
    if text.isascii():
        return len(text)
    return sum(2 if unicodedata.east_asian_width(one) in "WF" else unicodedata.combining(one) == 0 for one in text)


def _padded(cell: str, width: int, side: str) -> str:
    return f"{cell:{side}{width - breadth(cell) + len(cell)}}"


def count(number: int, what: str = "") -> str:
    """Return a number with commas between thousands, and what is counted: "1 tensor", "1,200 tensors"."""
    return f"{number:,}{f' {what}' if what else ''}{'s' if what and number != 1 else ''}"


def number(value: float | None) -> str:
    """Return a number with four significant digits; "-" if it isn't defined."""
    return "-" if value is None else f"{value:.4g}"


def percent(fraction: float | None) -> str:
    """Return a fraction in per cent; "-" if it isn't defined. Only exactly 0 and 1 are shown as 0% and 100%."""
    if fraction is None:
        return "-"
    for digits in (1, 4, 7):
        text = f"{100 * fraction:.{digits}f}"
        if (float(text) in (0, 100)) == (fraction in (0, 1)):
            return f"{text}%"
    return ">99.9999%" if fraction > 0.5 else "<0.0001%"
