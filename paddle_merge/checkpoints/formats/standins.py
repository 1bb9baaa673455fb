"""Define the stand-ins that pickles.load makes instead of Python objects: strings, byte strings, callables, and objects.

They hold what a file says, and where its payloads are stored; none of them runs code that a file names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...errors import MalformedError
from ...records import record


class Text(str):
    """Hold a string, and where its bytes are in the file; the string is empty if they are more than pickles.MAX_TEXT."""

    offset: int
    nbytes: int


@record(frozen=True, eq=False)
class Bytes:
    """Hold where a byte string is in the file. text: whether it is stored as UTF-8 of latin-1 text (pickle protocol 2)."""

    offset: int
    nbytes: int
    text: bool = False


@record(frozen=True, eq=False)
class Word:
    """Stand in for an importable name. make: takes the arguments of a call, and returns a stand-in for its result."""

    name: str
    make: Callable[..., Any]


class Standin:
    """Stand in for an object. As keys of dicts, stand-ins are compared by identity."""

    def build(self, state: Any) -> None:
        """Set the state that the file gives (the BUILD instruction). Raises MalformedError."""
        raise MalformedError("sets the state of an object that has none")


class Record(Standin):
    """Stand in for an object of attributes. fields: the attributes, as the file sets them."""

    def __init__(self) -> None:
        self.fields: dict[str, Any] = {}

    def build(self, state: Any) -> None:
        """Set the attributes. Raises MalformedError if `state` is no dict with strings as keys."""
        if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
            raise MalformedError("sets attributes without names")
        self.fields = state


class Opaque(Standin):
    """Stand in for an object of which nothing is needed: a number, a device, a set. Its content and state are ignored."""

    def __init__(self, *_: Any) -> None:
        pass

    def build(self, state: Any) -> None:
        """Ignore the state."""
