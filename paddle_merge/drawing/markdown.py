"""Write text and tables as Markdown, in which nothing of the text counts as markup."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..parsing import one_line

# An underscore within a word, as in reserve_p, is none.
_MARKUP = re.compile(r"[|\\`*<>\[\]~&$]|(?<![^\W_])_|_(?![^\W_])")


def escaped(text: str) -> str:
    """Return text, in one line, that Markdown shows as it is, within a table too."""
    return _MARKUP.sub(r"\\\g<0>", one_line(text))


def table(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Return a table of texts, which are escaped. rows: the headings first. left: how many columns are aligned left."""
    lines = [f"| {' | '.join(map(escaped, row))} |" for row in rows]
    columns = ["---" if place < left else "---:" for place in range(len(rows[0]))]
    return "\n".join([lines[0], f"| {' | '.join(columns)} |", *lines[1:]])
