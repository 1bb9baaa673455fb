"""The command line of `python -m paddle_merge sweep`: flags -> SweepConfig -> search.sweep."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import ConfigError
from ...recipe.fields import flag, to_types
from .. import common_flags
from ..flags import PROGRAM, CommandLine, fields_of

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
class SweepConfig:
    """The settings of a sweep that are not in its file."""

    paths: list[str] = dataclasses.field(default_factory=list)
    output_path: str | None = flag(common_flags.OUTPUT, "The folder for the merged checkpoint, best.yaml and the report.")
    resume: bool = flag(common_flags.OUTPUT, "Go on with the sweep that was stopped in the output folder.", False)
    overwrite: bool = flag(common_flags.OUTPUT, "Begin again, even if the output folder holds a sweep.", False)
    pick: str | None = flag(common_flags.OUTPUT, common_flags.PICK, shown="as the file says")
    json: bool = common_flags.as_json("Print report.json.")
    workers: int | None = flag(
        common_flags.RUNNING, "How many points are scored at the same time.", shown="as the file says", least=1
    )

    def __post_init__(self) -> None:
        """Convert the fields to their types. Raises ConfigError."""
        to_types(self)

    def check(self) -> None:
        """Raise ConfigError listing everything that is wrong with the flags."""
        found = common_flags.problems(self)
        if len(self.paths) != 1:
            found.append(f"give one file: {PROGRAM} sweep sweep.yaml --output_path ./best")
        if not self.output_path:
            found.append("give the folder for the result: --output_path ./best")
        if found:
            raise ConfigError(found)


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
    LINE.main(argv, _run)


def _run(paths: list[str], flags: dict[str, Any]) -> None:
    config = SweepConfig(paths, **flags)
    config.check()
    assert config.output_path is not None
    import json
    import os

    from ...search.sweep import SweepAsked, sweep
    from ...search.sweep_output import sweep_report
    from .show import lines

    asked = SweepAsked(
        file=config.paths[0],
        output=os.path.expanduser(config.output_path),
        resume=config.resume,
        overwrite=config.overwrite,
        workers=config.workers,
        pick=config.pick,
        memory=common_flags.memory_for_inputs(config.workers or 1),
    )
    outcome = sweep(asked)
    print(json.dumps(sweep_report(outcome), indent=2, ensure_ascii=False) if config.json else "\n".join(lines(outcome)))
