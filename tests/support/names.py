"""Names of files that not every file system takes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def not_utf8(folder: Path) -> str:
    """Return a name that isn't UTF-8. Skips the test where the folder's file system takes none, as macOS's."""
    name = os.fsdecode(b"caf\xe9")
    try:
        (folder / name).touch()
    except OSError:
        pytest.skip("this file system wants UTF-8 names")
    (folder / name).unlink()
    return name
