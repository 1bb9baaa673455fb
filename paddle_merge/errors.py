"""What can go wrong, as a tree. Every message is one sentence a user can act on.

MergeError                 anything this package raises on purpose
├── ConfigError            the command or the config file asks for something that can't be
├── CheckpointError        an input is damaged, missing, or doesn't fit the others
├── OutputError            the output can't be written there
└── WorkError              the merge itself failed: a worker died, a disk filled, an input is not finite

The first two are ValueErrors too: what PaddleNLP's mergekit raises, and what its users' scripts catch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


class MergeError(Exception):
    """Base of all errors raised on purpose; `problems` holds one sentence each.

    Names in files may hold characters that move a terminal's cursor, or turn text around: sentences show their codes.
    """

    def __init__(self, problems: str | Sequence[str]):
        self.problems: list[str] = [_visible(text) for text in ([problems] if isinstance(problems, str) else problems)]
        super().__init__("\n".join(self.problems))


def _visible(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


class ConfigError(MergeError, ValueError):
    """A flag, a field of a config file, or a combination of them is wrong."""


class CheckpointError(MergeError, ValueError):
    """An input checkpoint can't be read, or the inputs don't fit together."""


class OutputError(MergeError):
    """The output folder can't be written: it exists, is an input, or the disk is too small."""


class WorkError(MergeError):
    """The merge started and could not be finished."""


class Attempts:
    """Calls whose errors are collected, to be raised together."""

    def __init__(self) -> None:
        self.errors: list[MergeError] = []

    def __call__(self, step: Callable[..., T], *args: Any) -> T | None:
        """What the step returns; None if it raises a MergeError."""
        try:
            return step(*args)
        except MergeError as error:
            self.errors.append(error)
            return None

    def finish(self) -> None:
        """Raises a MergeError of the first one's kind with the problems of all, each once."""
        if self.errors:
            problems = [problem for error in self.errors for problem in error.problems]
            raise type(self.errors[0])(list(dict.fromkeys(problems)))


class MalformedError(Exception):
    """What is wrong, as the part of a sentence that follows the file's name."""
