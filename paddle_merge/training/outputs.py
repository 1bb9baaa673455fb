"""Check the folders that callbacks write to, and put new ones in place of those that earlier runs wrote."""

from __future__ import annotations

import os
from collections.abc import Collection

from ..errors import ConfigError
from ..plan.file_names import RECORD

MERGED = (RECORD,)  # what tells a folder that a merge wrote from one of somebody else


def contains(outer: str, inner: str) -> bool:
    """Return whether a folder is another one, or contains it, after links are resolved."""
    outer, inner = os.path.realpath(outer), os.path.realpath(inner)
    return os.path.commonpath([outer, inner]) == outer


def check_replaceable(folder: str, marks: Collection[str] = MERGED) -> None:
    """Check that a folder is missing, empty, or has one of the files `marks`. Raises ConfigError."""
    held = os.listdir(folder) if os.path.isdir(folder) else []
    other = os.path.exists(folder) and not os.path.isdir(folder)
    if other or (held and not any(name in held for name in marks)):
        raise ConfigError(f"output {folder} holds what is not of an earlier merge; give another name, or remove it")


def scratch_of(folder: str) -> str:
    """Return the hidden folder in which a new version is prepared: beside `folder`, hence on the same file system.

    A link is resolved, so that it stays, and its target is what is replaced.
    """
    parent, name = os.path.split(os.path.realpath(folder))
    return os.path.join(parent, f".{name}.partial")


def publish(new: str, folder: str, marks: Collection[str] = MERGED) -> None:
    """Move the complete folder `new`, in the scratch folder, to its final path, in place of an older version.

    The older version goes into the scratch folder, which the caller removes. Raises ConfigError if what is there now may not
    be replaced: check_replaceable at the beginning of a training can't know what people put there meanwhile.
    """
    check_replaceable(folder, marks)
    final, old = os.path.realpath(folder), os.path.join(scratch_of(folder), "replaced")
    replaces = os.path.isdir(final)
    if replaces:
        os.rename(final, old)
    try:
        os.rename(new, final)
    except OSError:
        if replaces:
            os.rename(old, final)
        raise
