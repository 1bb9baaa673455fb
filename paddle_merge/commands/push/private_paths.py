"""Find the files of an upload that tell how folders of this machine are called, and so often whose they are."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator

from ...plan.file_names import EXTRACT_REPORT, LOCK, MERGE_LORA_REPORT, RECORD
from .tree import Tree

_MOST_BYTES = 1 << 20  # of a file that is looked through: records and pages are smaller, weights and vocabularies larger
# In these every absolute path was one of the machine that wrote them, whether or not it exists on this one.
_RECORDS = {RECORD, LOCK, EXTRACT_REPORT, MERGE_LORA_REPORT, "config.json", "adapter_config.json", "lora_config.json"}
_PATH = re.compile(r"""(?<![\w.:/~-])(/[^\s/"'<>|:;,()\[\]{}`*?\\]+){2,}""")
# What is alike on all machines: programs and devices, which scripts name.
_SYSTEM = re.compile(r"/(usr|bin|sbin|lib\w*|etc|proc|sys|dev(?!/shm))/")


def private_paths(tree: Tree) -> dict[str, str]:
    """Return the files that are pushed and hold absolute paths, each with the first one: any in records of merges and in
    configs, and in other small text files those below the user's home, and those that exist."""
    found = {}
    for name, nbytes in tree.files.items():
        if nbytes > _MOST_BYTES:
            continue
        try:
            with open(os.path.join(tree.folder, name), "rb") as file:
                text = file.read().decode()
        except (OSError, UnicodeDecodeError):  # a picture, say
            continue
        paths = _in_record(text) if os.path.basename(name) in _RECORDS else _existing(text)
        if path := next(paths, None):
            found[name] = path
    return found


def _in_record(text: str) -> Iterator[str]:
    """Yield the absolute paths among the keys and values of a JSON file."""

    def texts(value: object) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            for key, inner in value.items():
                yield key
                yield from texts(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from texts(inner)

    try:
        content = json.loads(text)
        yield from (one for one in texts(content) if os.path.isabs(one) and _PATH.match(one))
    except (ValueError, RecursionError):
        yield from _existing(text)


def _existing(text: str) -> Iterator[str]:
    """Yield the paths in a text that are below the user's home, or exist, or whose folder does."""
    home = os.path.expanduser("~")
    for match in _PATH.finditer(text):
        path = match[0].rstrip(".")
        below = home.count("/") > 1 and f"{path}/".startswith(f"{home}/")
        folder = os.path.dirname(path)
        there = os.path.exists(path) or (folder.count("/") > 1 and os.path.isdir(folder))
        if below or (there and not _SYSTEM.match(path)):
            yield path
