"""Write a table into the model cards of merges, between two comments that mark it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import ConfigError, OutputError
from ...plan.file_names import CARD, RECORD

TITLE = "## Evaluation"


@dataclass(frozen=True)
class Card:
    """A model card. text: its content; "" if it doesn't exist yet."""

    path: str
    text: str

    def write(self, name: str, table: str) -> None:
        """Put a table into the card, in place of the one of the same name, else at the end. Raises OutputError."""
        begin, end = _marks(name)
        section = f"{begin}\n{TITLE}\n\n{table}\n{end}\n"
        before, found, rest = self.text.partition(begin)
        if found:
            text = before + section + rest.partition(end)[2].removeprefix("\n")
        else:
            text = f"{self.text.rstrip()}\n\n{section}" if self.text.strip() else section
        try:
            with open(f"{self.path}.partial", "w", encoding="utf-8", newline="") as file:
                file.write(text)
            os.replace(f"{self.path}.partial", self.path)
        except OSError as error:
            raise OutputError(f"{self.path}: can't be written ({error.strerror})") from None


def cards(paths: Sequence[str]) -> list[Card]:
    """Return the cards of those paths that are the output folder of a merge.

    Raises ConfigError if there are none, or if one can't be read or written.
    """
    folders = [path for path in map(os.path.expanduser, paths) if os.path.isfile(os.path.join(path, RECORD))]
    if not folders:
        raise ConfigError(f"--card: none of the models is the output folder of a merge, which holds {RECORD}")
    found, problems = list[Card](), list[str]()
    for folder in dict.fromkeys(folders):
        path = os.path.join(folder, CARD)
        try:
            text = ""
            if os.path.exists(path):
                with open(path, encoding="utf-8", newline="") as file:
                    text = file.read()
            if not os.access(folder, os.W_OK):
                raise OSError(None, "no permission to write into the folder")
            found.append(Card(path, text))
            problems += _unfinished(path, text)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            problems.append(f"--card: {path}: can't be changed ({reason})")
    if problems:
        raise ConfigError(problems)
    return found


_BEGIN, _END = "<!-- paddle_merge evaluate", "<!-- end of paddle_merge evaluate"


def _marks(name: str) -> tuple[str, str]:
    return f"{_BEGIN} {name} -->", f"{_END} {name} -->"


def _unfinished(path: str, text: str) -> list[str]:
    """Return what is wrong with tables whose beginning is there, and whose end somebody has deleted."""
    found = []
    for line in text.splitlines():
        if line.startswith(_BEGIN):
            name = line.removeprefix(_BEGIN).removesuffix("-->").strip()
            if _marks(name)[1] not in text.partition(line)[2]:
                found.append(
                    f"--card: {path}: the line {line} has no {_marks(name)[1]} below it; delete it, or add that line"
                )
    return found
