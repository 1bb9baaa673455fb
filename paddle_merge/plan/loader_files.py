"""Find the files beside the weights that loaders look for: config, tokenizer, processors, and code."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

from ..checkpoints.config_json import code_files, module_folders
from ..checkpoints.json_files import read_json
from ..errors import CheckpointError
from .file_names import CARD, COPIED, LOCK, RECORD, WEIGHTS

NAMED = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".vocab", ".npy")  # endings of files that configs name
MODULES = "modules.json"  # lists the folders of a sentence-transformers model


def loader_files(folder: str) -> tuple[list[str], list[str]]:
    """Return the files of a model's folder that loaders look for, as paths within it, sorted; and sentences on those that
    can't be copied.

    Weights, their indexes, and what trainers leave are not among them. Raises CheckpointError if the folder can't be read.
    """
    try:
        present = sorted(os.listdir(folder))
    except OSError as error:
        raise CheckpointError(f"{folder}: can't be read ({error.strerror})") from None
    known = [name for name in present if any(fnmatch.fnmatch(name, pattern) for pattern in COPIED)]
    found, notes = set(known), list[str]()
    for name in known:
        content = _json(os.path.join(folder, name)) if name.endswith(".json") and "config" in name else None
        code = code_files(content)
        absent = [one for one in code if one not in present]
        if absent:
            notes.append(f"{folder}/{name} names {', '.join(absent)}, which loaders need and which isn't there")
        if code:
            found |= {one for one in present if one.endswith(".py")}  # they import one another
        found |= {one for one in _strings(content) if one.endswith(NAMED) and _is_file(folder, one)}
    for part in _modules(folder, present) if MODULES in known else ():
        within = sorted(os.listdir(os.path.join(folder, part)))
        found |= {f"{part}/{name}" for name in within if _is_file(folder, f"{part}/{name}")}
        weights = [name for name in within if name.endswith(WEIGHTS)]
        if weights:
            notes.append(
                f"{folder}/{part} holds weights of its own ({', '.join(weights)}), which are neither merged nor copied:"
                " merge these folders too, as models of their own"
            )
    return sorted(found), notes


def _json(path: str) -> Any:
    """Return the content of a JSON file; None if it can't be read. (Who needs it says why.)"""
    try:
        return read_json(path)
    except CheckpointError:
        return None


def _strings(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, dict | list):
        for one in content.values() if isinstance(content, dict) else content:
            yield from _strings(one)


def _is_file(folder: str, name: str) -> bool:
    """Return whether this is the path of a file within the folder that may be copied."""
    inside = name == os.path.normpath(name) and not os.path.isabs(name) and not name.startswith(".")
    ours = name.endswith(WEIGHTS) or name in (CARD, RECORD, LOCK)
    return inside and "\0" not in name and not ours and os.path.isfile(os.path.join(folder, name))


def _modules(folder: str, present: Sequence[str]) -> list[str]:
    """Return the folders of a sentence-transformers model's modules: those that modules.json lists, and those that are
    named as the library names them (1_Pooling)."""
    listed = module_folders(_json(os.path.join(folder, MODULES)))
    names = [name for name in present if name in listed or re.fullmatch(r"\d+_[A-Z]\w*", name)]
    return [name for name in names if os.path.isdir(os.path.join(folder, name))]
