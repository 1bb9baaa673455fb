"""Write text and tables as Markdown, in which nothing of the text counts as markup."""

from __future__ import annotations

from collections.abc import Sequence

from ..parsing import one_line


def escaped(text: str) -> str:
    """Return text, in one line, that Markdown shows as it is, within a table too."""
    return "".join(f"\\{letter}" if letter in "|\\`*<>[]" else letter for letter in one_line(text))


def table(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Return a table of texts, which are escaped. rows: the headings first. left: how many columns are aligned left."""
    lines = [f"| {' | '.join(map(escaped, row))} |" for row in rows]
    columns = ["---" if place < left else "---:" for place in range(len(rows[0]))]
    return "\n".join([lines[0], f"| {' | '.join(columns)} |", *lines[1:]])
