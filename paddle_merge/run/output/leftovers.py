"""Recognise what killed merges leave in an output folder, and tell it from other files."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os

from ...checkpoints.formats.naming import FORMATS, is_weights
from ...plan.file_names import ADAPTERS, CARD, CODE, COPIED, LOCK, NAMES, PARTIAL, RECORD, is_journal


def left_behind(name: str, prefix: str, ending: str = PARTIAL) -> bool:
    """Return whether a killed merge leaves a file of this name."""
    whole = name.removesuffix(ending)
    ours = any(is_weights(whole, save_format, prefix) for save_format in FORMATS) or whole in (CARD, RECORD, LOCK, *ADAPTERS)
    ours = ours or is_journal(name) or name == NAMES
    return name.endswith(ending) and (ours or any(fnmatch.fnmatch(whole, usual) for usual in (*COPIED, CODE)))


def read_names(folder: str) -> list[str]:
    """Return the final names that a killed merge was about to give its files; [] if it wasn't that far."""
    with contextlib.suppress(OSError, ValueError), open(os.path.join(folder, NAMES), "rb") as file:
        return list(json.loads(file.read().decode("utf-8", "surrogatepass")))
    return []


def half_named(folder: str) -> set[str]:
    """Return the names of files of a merge that was killed while it renamed them: they belong to no complete merge."""
    names = read_names(folder)
    left = {name + PARTIAL for name in names}
    if names and os.path.lexists(os.path.join(folder, names[-1] + PARTIAL)):
        left |= {name for name in names if not os.path.lexists(os.path.join(folder, name + PARTIAL))}
    for parent in {name.split(os.sep)[0] for name in names if os.sep in name}:
        held = [os.path.join(at, file) for at, _, files in os.walk(os.path.join(folder, parent)) for file in files]
        if all(os.path.relpath(path, folder) in left for path in held):
            left.add(parent)
    return left


def is_unfinished(folder: str) -> bool:
    """Return whether there is more of a merge than journals, which are removed only when the merge is complete."""
    return any(name.endswith(PARTIAL) and name != NAMES and not is_journal(name) for name in os.listdir(folder))
