"""Convert values from flags, JSON and YAML: numbers, booleans and sizes; and format values and suggestions for messages."""

from __future__ import annotations

import difflib
import math
import operator
import os
import re
import reprlib
from collections.abc import Callable, Sequence
from typing import Any

AUTO = " | Literal['auto']"  # the end of the annotation of a field that may be auto


def coerce(value: Any, kind: str) -> Any:
    """Convert a value from JSON, YAML, a command line or Python to the annotated type `kind`, such as "list[float] | None".

    kind: bool, int, float or str, one of these or the word auto, or a list of one of them; a single value is accepted for a
    list. The value may be a NumPy scalar, a path, or a number or boolean written as text; a list may be a vector of NumPy,
    Paddle or torch. Raises ValueError; its message completes a sentence that begins with the field's name ("must be a
    number, not 'x'").
    """
    kind = kind.removesuffix(" | None")
    auto = kind.endswith(AUTO)
    kind = kind.removesuffix(AUTO)
    if auto and isinstance(value, str) and value == "auto":
        return value
    if kind.startswith("list["):
        if getattr(value, "ndim", 0) == 1 and hasattr(value, "tolist"):
            value = value.tolist()
        items = value if isinstance(value, list | tuple) else [value]
        try:
            return [coerce(item, kind[5:-1]) for item in items]
        except ValueError as error:
            commas = any(isinstance(item, str) and "," in item for item in items)
            remedy = "; a list is 1 2 in a command, and [1, 2] elsewhere" if commas else ""
            raise ValueError(f"{error}{remedy}") from None
    converters: dict[str, Callable[[Any], Any]] = {"bool": _to_bool, "int": _to_int, "float": float, "str": _to_str}
    try:
        if kind in ("int", "float") and isinstance(value, bool):
            raise ValueError
        return converters[kind](value)
    except (TypeError, ValueError, OverflowError):
        needed = {"bool": "True or False", "int": "a whole number", "float": "a number", "str": "text"}[kind]
        raise ValueError(f"must be {needed}{' or auto' if auto else ''}, not {shown(value)}") from None


def _to_bool(value: Any) -> bool:
    """Return a boolean, given one, 0 or 1, or text. Raises ValueError."""
    parsed = parse_bool(value) if isinstance(value, str) else value
    if parsed not in (True, False) or isinstance(parsed, float):
        raise ValueError
    return bool(parsed)


def _to_int(value: Any) -> int:
    """Return an int of at most 64 bits, given an integer or text. Raises ValueError, TypeError, OverflowError."""
    number = int(value) if isinstance(value, str) else operator.index(value)
    if abs(number) >= 2**64:
        raise OverflowError
    return number


def _to_str(value: Any) -> str:
    """Return text, given text, a path or an int. Raises TypeError."""
    text = str(value) if type(value) is int else os.fspath(value)
    if isinstance(text, bytes):
        raise TypeError
    return text


def parse_bool(text: str) -> bool | None:
    """Return the boolean that PaddleNLP's argument parser reads from the text; None if it is no boolean."""
    lowered = text.lower()
    if lowered in ("yes", "true", "t", "y", "1"):
        return True
    return False if lowered in ("no", "false", "f", "n", "0") else None


def parse_size(text: str | int) -> int:
    """Return the bytes of a size such as "5GB" (decimal), "512MiB" (binary) or "1000". Raises ValueError if it is none."""
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


def size_text(nbytes: float, round_up: bool = False) -> str:
    """Return a number of bytes with three significant digits and a decimal unit, as flags take it: 512 B, 1.23 MB, 5 GB.

    round_up: to a size that is surely enough, instead of to the nearest.
    """
    if round_up and nbytes >= 1000:
        step = 10 ** (len(str(math.ceil(nbytes))) - 3)
        nbytes = math.ceil(nbytes / step) * step
    return _scaled(nbytes, ("B", "KB", "MB", "GB", "TB"))


def count_text(number: int) -> str:
    """Return a count with three significant digits and the letter that is usual for parameters: 512, 1.23 K, 7.62 B."""
    return _scaled(number, ("", "K", "M", "B", "T")).rstrip()


def _scaled(number: float, units: tuple[str, ...]) -> str:
    """Return a number with three significant digits, in the first unit in which it is below 1000, or the last."""
    value, unit = float(number), units[0]
    for larger in units[1:]:
        if abs(value) < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}" if abs(value) < 999.5 else f"{value:,.0f} {unit}"


class _Short(reprlib.Repr):
    """Format a value with limits on depth and length, which also ends structures that contain themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 3, 200, 200

    def repr_int(self, x: int, level: int) -> str:
        """Return an int's digits, unless Python would refuse to, or take long to, convert that many."""
        return repr(x) if abs(x) < 10**40 else "a number of more than 40 digits"


def one_line(text: str) -> str:
    """Return a text as one line without control characters: these are written as escapes."""
    return text if text.isprintable() else repr(text)[1:-1]


def without_secrets(text: str, token: str | None = None) -> str:
    """Return a text without the token, and with addresses that have neither a user and password nor a query, both of which
    may be credentials. Of what isn't clearly an address, queries with values are left out, too."""
    if token:
        text = text.replace(token, "<token>")
    text = re.sub(r"(\w[\w+.-]*://)[^/\s'\"]*@", r"\1", text)
    text = re.sub(r"(\w[\w+.-]*://[^\s?'\"<>)]*)\?[^\s'\"<>)]*", r"\1", text)
    return re.sub(r"\?[^\s=?'\"<>)]+=[^\s'\"<>)]*", "", text)


def shown(value: Any) -> str:
    """Return the repr of any value, such as one out of a file, shortened to fit into a sentence."""
    return _Short().repr(value)


def tensors_named(names: Sequence[str], most: int = 3) -> str:
    """Return "tensor 'a'", "tensors 'a' and 'b'", or the first `most` and how many more there are."""
    quoted = [repr(name) for name in names[:most]]
    if len(names) > most:
        return f"tensors {', '.join(quoted)} and {len(names) - most} more"
    *before, last = quoted
    return f"tensors {', '.join(before)} and {last}" if before else f"tensor {last}"


def nearest(word: Any, candidates: Any) -> str:
    """Return "; did you mean ...?" with the candidate that is spelt most like `word`, or "" if none is similar."""
    listed = list(candidates)
    close = difflib.get_close_matches(str(word), listed, n=1) or difflib.get_close_matches(str(word).lower(), listed, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def short_paths(paths: Sequence[str]) -> list[str]:
    """Return the last parts of each path: only its name, or as many parts as tell different paths apart.

    What is published goes by these, since the other parts say where somebody keeps their files.
    """
    split = [os.path.abspath(path).strip(os.sep).split(os.sep) for path in paths]
    distinct = {tuple(parts) for parts in split}
    found = []
    for parts in split:
        others = distinct - {tuple(parts)}
        count = 1
        while count < len(parts) and any(other[-count:] == tuple(parts[-count:]) for other in others):
            count += 1
        found.append("/".join(parts[-count:]))
    return found
