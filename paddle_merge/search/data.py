"""Read the samples of the splits, and find those that the search split and the report split share."""

from __future__ import annotations

import json
import os
from typing import Any

from ..errors import ConfigError
from .spec import Data, File

OVERLAP = "a result on samples that were searched on says nothing; give other ones, or say shared: true to allow it"


def read_samples(path: str) -> list[tuple[int, Any]]:
    """Return the JSON values of a file, one per line, each with its line's number; empty lines are skipped.

    Raises ConfigError.
    """
    found, number = [], 0
    try:
        with open(path, encoding="utf-8-sig") as file:
            for line in file:
                number += 1
                if line.strip():
                    found.append((number, json.loads(line)))
    except OSError as error:
        raise ConfigError(f"{path}: can't be read ({error.strerror})") from None
    except ValueError:
        raise ConfigError(f"{path}:{number}: is no JSON object; a file of samples has one per line") from None
    return found


def count_samples(path: str) -> int:
    """Return how many samples a file has: lines that aren't empty. Raises ConfigError."""
    try:
        with open(path, "rb") as file:
            return sum(bool(line.strip()) for line in file)
    except OSError as error:
        raise ConfigError(f"{path}: can't be read ({error.strerror})") from None


def check_splits(data: Data, folder: str) -> None:
    """Check that what a search optimises is not what it reports on. folder: in which relative paths are looked up.

    Raises ConfigError with the number of samples that both splits have, by content, unless data.shared.
    """
    if data.search is None or data.report is None or data.shared:
        return
    paths = [os.path.join(folder, os.path.expanduser(path)) for path in (data.search, data.report)]
    at = f"{data.places['report']}: " if "report" in data.places else ""
    if os.path.realpath(paths[0]) == os.path.realpath(paths[1]) or data.search == data.report:
        raise ConfigError(f"{at}data: search and report are the same, {data.search}; {OVERLAP}")
    if all(map(os.path.isfile, paths)):
        search, report = (_contents(path) for path in paths)
        if both := search & report:
            raise ConfigError(f"{at}data: {data.search} and {data.report} share {len(both)} samples; {OVERLAP}")


def check_file(kind: str, data: Data, split: str, file: File) -> None:
    """Raise ConfigError if a command or a function would be given a file of samples that isn't there.

    What has no ending and isn't written as a path may be something else, such as the name of a data set. The other
    evaluators know.
    """
    given = data.of(split)
    if kind not in ("command", "python") or given is None:
        return
    path = os.path.join(file.folder, os.path.expanduser(given))
    if (os.path.splitext(given)[1] or given.startswith((".", "~", os.sep))) and not os.path.exists(path):
        raise ConfigError(f"{file.at('data', split)}: {path}: no such file")


def _contents(path: str) -> set[str]:
    """Return the samples of a file, so that equal ones are equal however they are written."""
    found = set()
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        for line in file:
            if text := line.strip():
                try:
                    found.add(json.dumps(json.loads(text), sort_keys=True))
                except ValueError:
                    found.add(text)
    return found
