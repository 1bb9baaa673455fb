"""Define the exceptions of this package. Every message is a sentence that names the cause and, where there is one, a remedy.

MergeError                 base class of all errors that this package raises deliberately
├── ConfigError            a flag, a config file or a recipe is invalid
├── CheckpointError        an input is damaged, missing, or incompatible with the other inputs
├── OutputError            the output folder can't be written
├── WorkError              the merge itself failed: a worker died, a disk filled up, an input is not finite
└── HubError               a hub can't be reached, or doesn't do what it is asked to

ConfigError and CheckpointError are also ValueErrors, because PaddleNLP's mergekit raises ValueError and scripts catch it.
MalformedError is internal: the code that knows the file's name turns it into a CheckpointError.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


class MergeError(Exception):
    """Report one or more problems with the user's input, the output or the run.

    problems: a sentence, or several; the attribute of this name holds the list. Characters that are not printable, such as
    a tensor name that moves the terminal's cursor, are replaced by their escape codes.
    """

    def __init__(self, problems: str | Sequence[str]):
        self.problems: list[str] = [_visible(text) for text in ([problems] if isinstance(problems, str) else problems)]
        super().__init__("\n".join(self.problems))


def _visible(text: str) -> str:
    """Return the text with characters that are not printable replaced by their escape codes."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


class ConfigError(MergeError, ValueError):
    """Report that a flag, a field of a config file or recipe, or a combination of them is invalid."""


class CheckpointError(MergeError, ValueError):
    """Report that an input checkpoint can't be read, or that the inputs can't be merged with one another."""


class OutputError(MergeError):
    """Report that the output folder can't be written: it exists, it is an input, or the disk has too little space."""


class WorkError(MergeError):
    """Report that a merge started and could not be finished."""


class HubError(MergeError):
    """Report that a checkpoint can't be uploaded to a hub. The message holds no token."""


class Attempts:
    """Collect the MergeErrors of several calls, so that they are raised as one error.

    Call the object with a function and its arguments for each step; call finish() after the last.
    """

    def __init__(self) -> None:
        self.errors: list[MergeError] = []

    def __call__(self, step: Callable[..., T], *args: Any, **named: Any) -> T | None:
        """Return step(*args, **named), or None if it raises a MergeError, which is kept for finish()."""
        try:
            return step(*args, **named)
        except MergeError as error:
            self.errors.append(error)
            return None

    def finish(self) -> None:
        """Raise a MergeError of the first error's class with the problems of all errors, each once, if there are any."""
        if self.errors:
            problems = [problem for error in self.errors for problem in error.problems]
            raise type(self.errors[0])(list(dict.fromkeys(problems)))


class MalformedError(Exception):
    """Report damaged or unusable data; the message is the part of a sentence that follows the file's or tensor's name.

    Raised by code that doesn't know that name; its caller raises a CheckpointError with the whole sentence.
    """
