"""Flags that `evolve` and `sweep` share, and what they ask for."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..errors import ConfigError
from ..recipe.fields import flag, to_types
from . import common_flags

if TYPE_CHECKING:
    from ..search.asked import Asked


@dataclass
class SearchFlags:
    """The settings of a search or a sweep that are not in its file. USAGE: a command line, for messages."""

    paths: list[str] = dataclasses.field(default_factory=list)
    output_path: str | None = flag(common_flags.OUTPUT, "The folder for the merged checkpoint, best.yaml and the report.")
    resume: bool = flag(common_flags.OUTPUT, "Go on with what was stopped in the output folder.", False)
    overwrite: bool = flag(common_flags.OUTPUT, "Begin again, even if the output folder holds a search.", False)
    pick: str | None = flag(common_flags.OUTPUT, common_flags.PICK, shown="as the file says")
    json: bool = common_flags.as_json("Print report.json.")
    workers: int | None = flag(
        common_flags.RUNNING, "How many merges are scored at the same time.", shown="as the file says", least=1
    )
    ray: str | None = flag(
        common_flags.RUNNING,
        "Score merges on the Ray cluster at this address (auto: the one that this machine belongs to), --workers at a time."
        " Its nodes must see the same files.",
        shown="on this machine",
    )
    USAGE: ClassVar[str] = ""

    def __post_init__(self) -> None:
        """Convert the fields to their types. Raises ConfigError."""
        to_types(self)

    def check(self) -> None:
        """Raise ConfigError listing everything that is wrong with the flags."""
        found = common_flags.problems(self)
        if len(self.paths) != 1:
            found.append(f"give one file: {self.USAGE}")
        if not self.output_path:
            found.append("give the folder for the result: --output_path ./best")
        if self.resume and self.overwrite:
            found.append("--resume goes on, and --overwrite begins again; give one of them")
        if found:
            raise ConfigError(found)

    def asked(self) -> Asked:
        """Return what is asked for. Checked flags only."""
        from ..search.asked import Asked

        assert self.output_path is not None
        return Asked(
            file=os.path.expanduser(self.paths[0]),
            output=os.path.expanduser(self.output_path),
            resume=self.resume,
            overwrite=self.overwrite,
            workers=self.workers,
            pick=self.pick,
            memory=common_flags.memory_for_inputs(1),
            ray=self.ray,
        )


@contextlib.contextmanager
def resumable(folder: str) -> Iterator[None]:
    """Say, if it is interrupted, how to go on with what is in the output folder. Exits with status 130."""
    from ..search.journal import NAME as JOURNAL

    try:
        yield
    except KeyboardInterrupt:
        begun = os.path.exists(os.path.join(folder, JOURNAL))
        print(f"interrupted: {'--resume goes on from here' if begun else 'nothing was scored yet'}", file=sys.stderr)
        sys.exit(130)
