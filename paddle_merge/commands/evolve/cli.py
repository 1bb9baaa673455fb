"""The command line of `python -m paddle_merge evolve`: flags -> EvolveConfig -> search.evolve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ...recipe.fields import flag
from .. import common_flags
from ..flags import PROGRAM, CommandLine, fields_of
from ..run_line import run_line
from ..search_flags import SearchFlags, resumable

HELP = """Search for the best recipe by scoring merges.

Takes a search file: a recipe in which a value may be {search: [low, high]} or {choose: [...]}, with a section `search` that
says how candidates are scored. An optimiser proposes candidates; each is merged in memory and scored; the best recipe, its
merge and a report are written into the output folder. The recipe is an ordinary one, which gives the same merge without a
search.

Every score is appended to journal.jsonl at once. A search that was stopped goes on with --resume, to the same result as if
it had not been stopped, and the result is the same for any number of workers.
"""


@dataclass
class EvolveConfig(SearchFlags):
    """The settings of a search that are not in its file."""

    visualdl: str | None = flag(
        common_flags.OUTPUT, "A folder for VisualDL's scalars: the best and mean score of each generation.", shown="none"
    )

    USAGE: ClassVar[str] = f"{PROGRAM} evolve search.yaml --output_path ./best"


FIELDS = fields_of(EvolveConfig, "paths")
LINE = CommandLine(
    "evolve",
    FIELDS,
    ("FILE", "The search file."),
    HELP,
    [
        ("Search, with two candidates at a time:", "search.yaml --output_path ./best --workers 2"),
        ("Go on with a search that was stopped:", "search.yaml --output_path ./best --resume"),
    ],
)


def main(argv: Sequence[str]) -> None:
    """Run `python -m paddle_merge evolve *argv`. Raises MergeError."""
    run_line(LINE, argv, _run)


def _run(paths: list[str], flags: dict[str, Any]) -> None:
    config = EvolveConfig(paths, **flags)
    config.check()
    import json
    import os

    from ...search.evolve import evolve
    from ...search.output import report
    from .show import lines

    asked = config.asked()
    with resumable(asked.output):
        outcome = evolve(asked, visualdl=os.path.expanduser(config.visualdl) if config.visualdl is not None else None)
    said = report(outcome)
    print(json.dumps(said, indent=2) if config.json else "\n".join(lines(outcome, asked.output)))
