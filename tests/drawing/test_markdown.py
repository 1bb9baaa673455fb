"""Test Markdown: nothing of the text is markup."""

from __future__ import annotations

from paddle_merge.drawing.markdown import escaped, table


def test_a_table() -> None:
    rows = [["model", "nll"], ["a|b", "1.5"], ["*x*\n<b>[y](z)`\\", "-"]]
    assert table(rows).splitlines() == [
        "| model | nll |",
        "| --- | ---: |",
        "| a\\|b | 1.5 |",
        r"| \*x\*\\n\<b\>\[y\](z)\`\\\\ | - |",
    ]


def test_control_characters_are_shown() -> None:
    assert escaped("a\tb\x1b") == r"a\\tb\\x1b"


def test_underscores_tildes_and_formulas() -> None:
    """GitHub's Markdown has emphasis by underscores at the ends of words, deleted text, entities and formulas."""
    assert escaped("__a__ reserve_p a~~b~~ $x$ &lt;") == r"\_\_a\_\_ reserve_p a\~\~b\~\~ \$x\$ \&lt;"
