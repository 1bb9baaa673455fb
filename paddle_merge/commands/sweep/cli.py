"""The command line of `python -m paddle_merge sweep`: flags -> SweepConfig -> search.sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..flags import PROGRAM, CommandLine, fields_of
from ..run_line import run_line
from ..search_flags import SearchFlags, resumable

HELP = """Score merges over a grid, and weigh what alignment gained against what it cost.

Takes a file with a section `sweep`. It is either a recipe in which values are ranges (0:1:0.1), {search: [0, 1], step: 0.1}
or {choose: [...]}: every combination is merged and scored. Or it names two models, `pre` before alignment and `aligned`
after it: points between them, and beyond, are scored, and the table shows which share of the gained reward each keeps, and
which share of the alignment tax it buys back. The picked point's recipe and merge, a report and a picture are written into
the output folder.

Every score is appended to journal.jsonl at once. A sweep that was stopped goes on with --resume, and the result is the same
for any number of workers.
"""


@dataclass
class SweepConfig(SearchFlags):
    """The settings of a sweep that are not in its file."""

    USAGE: ClassVar[str] = f"{PROGRAM} sweep sweep.yaml --output_path ./best"


FIELDS = fields_of(SweepConfig, "paths")
LINE = CommandLine(
    "sweep",
    FIELDS,
    ("FILE", "The file with a section sweep."),
    HELP,
    [
        ("Sweep, with two points at a time:", "sweep.yaml --output_path ./aligned --workers 2"),
        (
            "Pick another point of a sweep that is done:",
            'sweep.yaml --output_path ./aligned --resume --pick "maximize reading subject to reward >= 0.95 of aligned"',
        ),
    ],
)


def main(argv: Sequence[str]) -> None:
    """Run `python -m paddle_merge sweep *argv`. Raises MergeError."""
    run_line(LINE, argv, _run)


def _run(paths: list[str], flags: dict[str, Any]) -> None:
    config = SweepConfig(paths, **flags)
    config.check()
    import json

    from ...search.sweep import sweep
    from ...search.sweep_output import sweep_report
    from .show import lines

    asked = config.asked()
    with resumable(asked.output):
        outcome = sweep(asked)
    print(json.dumps(sweep_report(outcome), indent=2) if config.json else "\n".join(lines(outcome)))
