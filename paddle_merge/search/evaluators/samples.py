"""Read the samples of the splits for evaluators that take JSONL files, and check every one of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from ...errors import Attempts, ConfigError
from ..data import read_samples
from ..job import Setup

T = TypeVar("T")
SPLITS = ("search", "report")
NAMED = 3  # lines that a message names


class Samples(Generic[T]):
    """The samples of both splits, each converted once.

    convert: makes what the evaluator works with of a JSON object; raises ValueError with what is wrong with it, as the rest
    of a sentence that begins with the line.
    """

    def __init__(self, setup: Setup, convert: Callable[[dict[str, Any]], T]):
        """Raises ConfigError with everything that is wrong with the files of the splits, or if no split has a file."""
        self._setup, self._convert = setup, convert
        self._held: dict[str, list[T]] = {}
        named = [split for split in SPLITS if setup.data.of(split)]
        if not named:
            evaluation = setup.evaluation
            example = "data: {search: FILE.jsonl, report: FILE.jsonl}"
            raise ConfigError(f"{evaluation.at}: {evaluation.kind} needs a file of samples: {example}")
        attempt = Attempts()
        for split in named:
            attempt(self.of, split)
        attempt.finish()

    def of(self, split: str) -> Sequence[T]:
        """Return the samples of a split. Raises ConfigError if it has none."""
        if split not in self._held:
            given = self._setup.data.of(split)
            if given is None:
                raise ConfigError(f"{self._setup.evaluation.at}: data names no file for the split {split}")
            path = os.path.join(self._setup.folder, os.path.expanduser(given))
            if not os.path.isfile(path):
                at = self._setup.data.places.get(split, self._setup.evaluation.at)
                raise ConfigError(f"{at}: {path}: no such file")
            self._held[split] = self._read(path)
        return self._held[split]

    def chosen(self, split: str, places: Sequence[int] | None) -> Sequence[T]:
        """Return the samples of a split at some places; all if places is None."""
        held = self.of(split)
        return held if places is None else [held[place] for place in places]

    def _read(self, path: str) -> list[T]:
        found, wrong = list[T](), dict[str, list[int]]()
        for line, sample in read_samples(path):
            try:
                if not isinstance(sample, dict):
                    raise ValueError("is no JSON object")
                found.append(self._convert(sample))
            except ValueError as error:
                wrong.setdefault(str(error), []).append(line)
        if wrong:
            raise ConfigError([_told(path, what, lines) for what, lines in wrong.items()])
        if not found:
            raise ConfigError(f"{path}: has no samples")
        return found


def text_at(sample: dict[str, Any], key: str) -> str:
    """Return the text that a sample has at a key. Raises ValueError."""
    if key not in sample:
        raise ValueError(f"has no {key!r}, but {', '.join(map(repr, sample)) or 'nothing'}")
    if not isinstance(sample[key], str):
        raise ValueError(f"{key!r} must be text")
    return str(sample[key])


def _told(path: str, what: str, lines: Sequence[int]) -> str:
    if len(lines) == 1:
        return f"{path}:{lines[0]}: {what}"
    others = ", ".join(map(str, lines[1:NAMED])) + (f" and {len(lines) - NAMED} more" if len(lines) > NAMED else "")
    return f"{path}:{lines[0]}: {what} (as in line {others})"
