"""The flags of `python -m paddle_merge demo`, and what they run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import ConfigError
from ...recipe.fields import flag, to_types
from .. import common_flags
from ..flags import CommandLine, fields_of
from ..run_line import run_line

HELP = """Train small networks, merge them by every method, and show the results.

Trains a base network that reads handwritten digits in the middle of an image, and experts that each read them in another
place, with Paddle on the CPU; merges the experts by every method; and prints how many test digits each checkpoint
classifies correctly. It takes about a minute on two cores. The checkpoints and a chart stay in the folder.
"""


@dataclass
class DemoConfig:
    """The settings of the demo."""

    folder: str = flag(common_flags.OUTPUT, "Folder for the checkpoints and the chart.", "demo")
    seed: int = flag(common_flags.RUNNING, "Seed of the random numbers: data split, training, and masks.", 0, least=0)
    quick: bool = flag(common_flags.RUNNING, "Train four experts instead of six, for fewer epochs.", False)

    def __post_init__(self) -> None:
        """Convert the fields to their types. Raises ConfigError."""
        to_types(self)

    def check(self) -> None:
        """Raise ConfigError listing everything that is wrong."""
        if found := common_flags.problems(self):
            raise ConfigError(found)


LINE = CommandLine(
    "demo",
    fields_of(DemoConfig),
    None,
    HELP,
    [("Run the whole demo:", ""), ("Run a shorter one with other random numbers:", "--quick --seed 1 --folder ./demo1")],
    many=False,
    needs_words=False,
)


def main(argv: Sequence[str]) -> None:
    """Run `python -m paddle_merge demo *argv`. Raises MergeError."""
    run_line(LINE, argv, _run)


def _run(_: Any, flags: dict[str, Any]) -> None:
    config = DemoConfig(**flags)
    config.check()
    from .run import run  # finds out whether Paddle is there

    run(config.folder, config.seed, config.quick)
