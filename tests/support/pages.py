"""Parse the Markdown pages of this repository: code blocks, commands, headings, links, tables."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.S | re.M)


def english() -> list[Path]:
    """Return the English pages: every README.md of the repository, hidden folders and those of tests aside."""
    found = {path: path.relative_to(ROOT).parts for path in ROOT.rglob("README.md")}
    ours = [path for path, parts in found.items() if "tests" not in parts and not any(part[0] in ".#" for part in parts)]
    return sorted(path for path in ours if (path.parent / "README_cn.md").exists())


def chinese(page: Path) -> Path:
    """Return the Chinese twin of an English page."""
    return page.with_name("README_cn.md")


def name_of(page: Path) -> str:
    """Return a page's path in the repository, for the names of tests."""
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> list[tuple[str, str]]:
    """Return the code blocks of a page as (language, content)."""
    return _FENCE.findall(page.read_text())


def prose(page: Path) -> str:
    """Return a page without its code blocks."""
    return _FENCE.sub("", page.read_text())


def commands(page: Path) -> list[list[str]]:
    """Return the words of each command of a page: in its blocks, where && separates commands, and in the text."""
    shell = [content.replace("\\\n", " ") for language, content in blocks(page) if language == "bash"]
    lines = [command for content in shell for line in content.splitlines() for command in line.split("&&")]
    lines += re.findall(r"`(python -m paddle_merge [^`]+)`", prose(page))
    return [words for words in map(shlex.split, lines) if words]


def headings(page: Path) -> list[tuple[int, str]]:
    """Return the headings of a page as (level, anchor); the anchor is the one that GitHub gives it."""
    found = re.findall(r"^(#+) (.+)$", prose(page), flags=re.M)
    return [(len(level), re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-")) for level, text in found]


def links(page: Path) -> list[tuple[Path, str]]:
    """Return the links of a page into this repository, as (file, anchor or "")."""
    found = [link for link in re.findall(r"\]\(([^)]+)\)", prose(page)) if "://" not in link]
    parted = [link.partition("#") for link in found]
    return [((page.parent / path).resolve() if path else page, anchor) for path, _, anchor in parted]


def tables(page: Path) -> list[list[list[str]]]:
    """Return the tables of a page: for each its rows, for each row its cells, the line of dashes left out."""
    found: list[list[list[str]]] = []
    inside = False
    for line in prose(page).splitlines():
        if line.startswith("|"):
            if not inside:
                found.append([])
            cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
            if not all(set(cell) <= set("-: ") and cell for cell in cells):
                found[-1].append(cells)
        inside = line.startswith("|")
    return found


def words(text: str) -> list[str]:
    """Return the parts of a text that are in backticks."""
    return re.findall(r"`([^`]+)`", text)
