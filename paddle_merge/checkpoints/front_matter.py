"""Find and read the metadata of model cards: the YAML at the beginning of README.md, between two lines of three dashes.

Hubs, people and many programs write cards, so anything may stand there. Only the keys that are asked for are parsed, as
text: embedding models' cards have megabytes of results, and YAML would read the language `no` as false.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from .json_files import open_regular

MOST_BYTES = 8 << 20  # of a card; what follows is not read
MOST_YAML = 1 << 16  # characters of the keys that are parsed
_MOST_BRACKETS = 200  # PyYAML takes time quadratic in how deep they are nested
# As Hugging Face's hub finds it.
_BLOCK = re.compile(r"\s*---(?:\r\n|\r|\n)([\S\s]*?)(?:\r\n|\r|\n)---[ \t]*(?:\r\n|\n|$)")
_KEY = re.compile(r"""(?:"([^"\n]+)"|'([^'\n]+)'|([A-Za-z_][\w.-]*))[ \t]*:(?=\s|$)""")


def read_card(path: str) -> str:
    """Return the text of a card. Bytes that are not UTF-8 become U+FFFD. Raises OSError."""
    with open_regular(path) as file:
        return file.read(MOST_BYTES).decode("utf-8-sig", "replace")


def span(card: str) -> tuple[int, int] | None:
    """Return where the metadata of a card begins and ends, without the lines of dashes; None if it has none."""
    found = _BLOCK.match(card)
    return found.span(1) if found else None


def blocks(metadata: str) -> list[tuple[str, str]]:
    """Return the keys of the metadata, each with its lines as they are. What stands before the first one has the key ""."""
    found: list[tuple[str, list[str]]] = [("", [])]
    for line in metadata.splitlines(keepends=True):
        if key := _KEY.match(line):
            found.append((key[1] or key[2] or key[3], []))
        found[-1][1].append(line)
    return [(key, "".join(lines)) for key, lines in found if lines]


def read_keys(card: str, wanted: Collection[str]) -> dict[str, Any]:
    """Return the values that a card's metadata has for keys: text, and lists and dicts of such.

    Raises ValueError, whose message says in a line what is wrong, if they aren't YAML.
    """
    import yaml

    where = span(card)
    kept = "".join(text for key, text in blocks(card[slice(*where)]) if key in wanted) if where else ""
    if len(kept) > MOST_YAML:
        raise ValueError(f"its metadata is longer than {MOST_YAML // 1024} KiB")
    if kept.count("[") + kept.count("{") > _MOST_BRACKETS:
        raise ValueError("its metadata is nested too deeply")
    try:
        found = yaml.load(kept, yaml.BaseLoader)  # which makes nothing but text, lists and dicts
    except RecursionError:
        raise ValueError("its metadata is nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ValueError(f"its metadata is not valid YAML: {problem}") from None
    return found if isinstance(found, dict) else {}


def texts(value: Any, most: int = 100) -> list[str]:
    """Return a value as a list of short texts: itself, or those of its entries that are texts."""
    entries = value if isinstance(value, list) else [value]
    return [one.strip() for one in entries[:most] if isinstance(one, str) and one.strip() and len(one) <= 200]
