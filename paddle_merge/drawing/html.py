"""Write HTML pages that need no scripts, no other files and no network. Names and paths come from files, so all text is
escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from ..parsing import one_line

STYLE = """
:root { color-scheme: light dark; --ground: #fff; --ink: #1c2430; --pale: #5d6878; --line: #d9dee5; --above: #e0702e;
  --below: #3b82d6; --warn: #fdf0e3; }
@media (prefers-color-scheme: dark) { :root { --ground: #14181e; --ink: #e6e9ee; --pale: #9aa5b4; --line: #333b46;
  --warn: #3b2a1a; } }
body { background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; max-width: 1060px;
  margin: 2em auto; padding: 0 1em; overflow-wrap: anywhere; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; }
p.what { color: var(--pale); max-width: 52em; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 3px 10px; border-bottom: 1px solid var(--line); text-align: right; overflow-wrap: normal; }
th:first-child, td:first-child, table.words td, table.words th { text-align: left; overflow-wrap: anywhere; }
th { color: var(--pale); font-weight: 600; }
ul.said { list-style: none; padding: 0; }
ul.said li { border-left: 4px solid var(--below); padding: 4px 12px; margin: 8px 0; }
ul.said li.warning { border-color: var(--above); background: var(--warn); }
h3 { font-size: 1em; margin: 1em 0 0.3em; }
.scroll { overflow-x: auto; } .two { display: flex; flex-wrap: wrap; gap: 0 3em; }
svg { display: block; } svg text { fill: var(--ink); font: 11px system-ui, sans-serif; } svg .grid { stroke: var(--line); }
"""


def document(title: str, parts: Iterable[str], foot: str) -> str:
    """Return a page: a title, its parts (HTML), and a last line."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{safe(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{safe(title)}</h1>\n"
        + "\n".join(parts)
        + f"\n<p class='what'>{safe(foot)}</p>\n</body>\n</html>\n"
    )


def safe(text: Any) -> str:
    """Return text as one line of HTML."""
    return escape(one_line(str(text)))


def heading(text: str, what: str = "") -> str:
    """Return a heading, and below it a paragraph that says what is shown."""
    return f"<h2>{safe(text)}</h2>" + (f'\n<p class="what">{safe(what)}</p>' if what else "")


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """Return a table. kind: "words" aligns all columns left; "": all but the first are numbers."""

    def line(tag: str, cells: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{safe(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "\n".join(line("td", row) for row in rows)
    return f'<div class="scroll"><table class="{kind}">\n{line("th", headings)}\n{body}\n</table></div>'


def picture(caption: str, svg: str) -> str:
    """Return a chart, or a table, below its caption."""
    return f'<div class="scroll">{f"<h3>{safe(caption)}</h3>" if caption else ""}{svg}</div>'
