"""The command line of `python -m paddle_merge evolve`: flags -> EvolveConfig -> search.evolve."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import ConfigError
from ...recipe.fields import flag, to_types
from .. import common_flags
from ..flags import PROGRAM, CommandLine, fields_of

HELP = """Search for the best recipe by scoring merges.

Takes a search file: a recipe in which a value may be {search: [low, high]} or {choose: [...]}, with a section `search` that
says how candidates are scored. An optimiser proposes candidates; each is merged in memory and scored; the best recipe, its
merge and a report are written into the output folder. The recipe is an ordinary one, which gives the same merge without a
search.

Every score is appended to journal.jsonl at once. A search that was stopped goes on with --resume, to the same result as if
it had not been stopped, and the result is the same for any number of workers.
"""


@dataclass
class EvolveConfig:
    """The settings of a search that are not in its file."""

    paths: list[str] = dataclasses.field(default_factory=list)
    output_path: str | None = flag(common_flags.OUTPUT, "The folder for the merged checkpoint, best.yaml and the report.")
    resume: bool = flag(common_flags.OUTPUT, "Go on with the search that was stopped in the output folder.", False)
    overwrite: bool = flag(common_flags.OUTPUT, "Begin again, even if the output folder holds a search.", False)
    pick: str | None = flag(common_flags.OUTPUT, common_flags.PICK, shown="as the file says")
    json: bool = common_flags.as_json("Print report.json.")
    workers: int | None = flag(
        common_flags.RUNNING, "How many candidates are scored at the same time.", shown="as the file says", least=1
    )
    ray: str | None = flag(
        common_flags.RUNNING,
        "Score candidates on the Ray cluster at this address (auto: the one that this machine belongs to), --workers at a"
        " time. Its nodes must see the same files.",
        shown="on this machine",
    )

    visualdl: str | None = flag(
        common_flags.OUTPUT, "A folder for VisualDL's scalars: the best and mean score of each generation.", shown="none"
    )

    def __post_init__(self) -> None:
        """Convert the fields to their types. Raises ConfigError."""
        to_types(self)

    def check(self) -> None:
        """Raise ConfigError listing everything that is wrong with the flags."""
        found = common_flags.problems(self)
        if len(self.paths) != 1:
            found.append(f"give one search file: {PROGRAM} evolve search.yaml --output_path ./best")
        if not self.output_path:
            found.append("give the folder for the result: --output_path ./best")
        if found:
            raise ConfigError(found)


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
    LINE.main(argv, _run)


def _run(paths: list[str], flags: dict[str, Any]) -> None:
    config = EvolveConfig(paths, **flags)
    config.check()
    assert config.output_path is not None
    import json
    import os
    import sys

    from ...search.evolve import Asked, evolve
    from ...search.output import report
    from .show import lines

    asked = Asked(
        file=config.paths[0],
        output=os.path.expanduser(config.output_path),
        resume=config.resume,
        overwrite=config.overwrite,
        workers=config.workers,
        ray=config.ray,
        visualdl=os.path.expanduser(config.visualdl) if config.visualdl is not None else None,
        pick=config.pick,
        memory=common_flags.memory_for_inputs(config.workers or 1),
    )
    try:
        outcome = evolve(asked)
    except KeyboardInterrupt:
        print("interrupted: --resume goes on with the search", file=sys.stderr)
        sys.exit(130)
    said = report(outcome)
    print(json.dumps(said, indent=2, ensure_ascii=False) if config.json else "\n".join(lines(outcome, asked.output)))
