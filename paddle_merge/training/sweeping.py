"""Sweep between two models with a file that doesn't name them: a training knows its checkpoint only when it ends."""

from __future__ import annotations

import os
import tempfile
from typing import Any

import yaml

from ..errors import ConfigError


def filled(file: str, pre: str, aligned: str) -> str:
    """Return the text of a sweep file with these two models. Raises ConfigError if it is not such a file."""
    from ..search.spec import read_file
    from ..search.sweep_spec import sweep_spec

    try:
        with open(file, encoding="utf-8") as stream:
            content: Any = yaml.safe_load(stream)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"sweep {file}: can't be read ({error})") from None
    section = content.get("sweep") if isinstance(content, dict) else None
    if not isinstance(section, dict):
        raise ConfigError(f"sweep {file}: has no section sweep")
    section |= {"pre": pre, "aligned": aligned}
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    with tempfile.TemporaryDirectory() as folder:
        copy = os.path.join(folder, os.path.basename(file))
        with open(copy, "w", encoding="utf-8") as stream:
            stream.write(text)
        sweep_spec(read_file(copy))
    return text


def swept(file: str, pre: str, aligned: str, output: str) -> str:
    """Sweep as a file says; return the path of the recipe that is picked. output: the folder for report and picture.

    Paths in the file are relative to its folder, so a filled-in copy is beside it meanwhile. Raises MergeError.
    """
    from ..search.asked import Asked
    from ..search.report.summary import BEST
    from ..search.sweep import sweep

    text = filled(file, os.path.abspath(pre), "+".join(os.path.abspath(part) for part in aligned.split("+")))
    handle, copy = tempfile.mkstemp(prefix=".sweep-", suffix=".yaml", dir=os.path.dirname(os.path.abspath(file)))
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        sweep(Asked(copy, output, overwrite=True), progress=False)
    finally:
        os.remove(copy)
    return os.path.join(output, BEST)
