"""Values as people write them: sizes, booleans, what a JSON or YAML file says, and misspelt words."""

from __future__ import annotations

import difflib
from typing import Any


def coerce(value: Any, kind: str) -> Any:
    """A JSON or YAML value as a field of annotated type `kind`. Raises ValueError with the rest of a sentence."""
    kind = kind.removesuffix(" | None")
    if kind.startswith("list["):
        items = value if isinstance(value, list | tuple) else [value]
        return [coerce(item, kind[5:-1]) for item in items]
    if kind == "bool" and isinstance(value, str) and parse_bool(value) is not None:
        return parse_bool(value)
    if kind == "float" and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind in ("int", "float") and isinstance(value, str):
        try:
            return int(value) if kind == "int" else float(value)
        except ValueError:
            pass
    if kind == "str" and type(value) is int:
        return str(value)
    expected: Any = {"bool": bool, "int": int, "float": float, "str": str}[kind]
    if not isinstance(value, expected) or (isinstance(value, bool) and kind != "bool"):
        raise ValueError(f"must be {'a list of ' if 'list' in kind else ''}{kind}, not {value!r}")
    return value


def parse_bool(text: str) -> bool | None:
    """What PaddleNLP's parser takes for a boolean, else None."""
    lowered = text.lower()
    if lowered in ("yes", "true", "t", "y", "1"):
        return True
    return False if lowered in ("no", "false", "f", "n", "0") else None


def parse_size(text: str | int) -> int:
    """Bytes of "5GB" (decimal), "512MiB" (binary) or "1000". Raises ValueError with the rest of a sentence."""
    stripped = str(text).strip().upper()
    for exponent, letter in enumerate("KMGT", start=1):
        for suffix, unit in ((f"{letter}IB", 1024), (f"{letter}B", 1000)):
            if stripped.endswith(suffix):
                stripped, factor = stripped.removesuffix(suffix), unit**exponent
                break
        else:
            continue
        break
    else:
        stripped, factor = stripped.removesuffix("B"), 1
    try:
        size = int(float(stripped) * factor)
    except (ValueError, OverflowError):
        size = 0
    if size <= 0:
        raise ValueError(f"{text!r} must be a size such as 5GB, 512MiB or a number of bytes")
    return size


def nearest(word: str, candidates: Any) -> str:
    """ "; did you mean ...?" or nothing."""
    close = difflib.get_close_matches(word, list(candidates), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
