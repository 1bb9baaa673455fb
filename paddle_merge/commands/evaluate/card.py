"""Find the model cards that an evaluation is to be written into: those of merges."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ...errors import ConfigError
from ...plan.file_names import RECORD
from ...run.output.card_results import CardFile


def cards(paths: Sequence[str]) -> list[CardFile]:
    """Return the cards of those paths that are the output folder of a merge.

    Raises ConfigError if there are none, or if one can't be read or written.
    """
    folders = [path for path in map(os.path.expanduser, paths) if os.path.isfile(os.path.join(path, RECORD))]
    if not folders:
        raise ConfigError(f"--card: none of the models is the output folder of a merge, which holds {RECORD}")
    found, problems = list[CardFile](), list[str]()
    for folder in dict.fromkeys(folders):
        try:
            found.append(CardFile(folder))
            if not os.access(folder, os.W_OK):
                raise OSError(None, "no permission to write into the folder")
            problems += [f"--card: {problem}" for problem in found[-1].problems()]
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            problems.append(f"--card: {os.path.join(folder, 'README.md')}: can't be changed ({reason})")
    if problems:
        raise ConfigError(problems)
    return found
