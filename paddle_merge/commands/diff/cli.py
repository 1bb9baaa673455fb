"""The flags of `python -m paddle_merge diff`, and what they run."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from ...errors import Attempts, CheckpointError, ConfigError
from ...recipe.fields import flag, to_types
from .. import common_flags
from ..flags import PROGRAM, CommandLine, fields_of
from ..run_line import run_line

HELP = """Compare the values of two checkpoints: in total, by layer, by kind of tensor, and by tensor.

Takes what a merge takes; `base+adapter` is read as the folded model. Checkpoints of different formats and layouts are
compared in A's layout. Tensors are read block by block, so memory doesn't grow with the models, and the results are the
same for any --n_process.

The columns: relative is the norm of A - B divided by the norm of A; cosine is the cosine similarity of A and B; max and
mean are of the absolute difference; changed is the share of elements that aren't equal as numbers (0.0 equals -0.0, and
NaN equals NaN). Sums include the elements that are finite in both checkpoints; NaN and Inf are counted, and their tensors
are named. The histogram counts elements by their distance in units in the last place of the tensor's dtype; if the dtypes
differ, of the coarser one.

The exit status is 0 whether the checkpoints differ or not, and 1 after an error; scripts read "same" in the output of
--json.
"""
_WHAT = "What to compare"


@dataclass
class DiffConfig:
    """The settings of a comparison. paths: A and B."""

    paths: list[str]
    layout: list[str] | None = common_flags.layout(_WHAT, "one word for both checkpoints, or one for A and one for B")
    merge_prefix: str = common_flags.merge_prefix(_WHAT)
    top: int = common_flags.top("layers, kinds of tensors, and tensors")
    json: bool = common_flags.as_json("Print all results, for every tensor, as JSON.")
    plot: str | None = flag(
        common_flags.OUTPUT,
        "Draw the relative change of each layer into this PNG file. Needs matplotlib.",
        shown="none",
    )
    n_process: int | None = common_flags.n_process()

    def __post_init__(self) -> None:
        """Convert the fields to their types. Raises ConfigError."""
        to_types(self)
        if self.plot is not None:
            self.plot = os.path.expanduser(self.plot)

    def check(self) -> None:
        """Raise ConfigError listing everything that is wrong, as far as no checkpoint has to be opened."""
        found = common_flags.problems(self)
        if len(self.paths) != 2:
            found.append(f"give two checkpoints, not {len(self.paths)}: {PROGRAM} diff A B")
        if self.layout is not None and len(self.layout) > 2:
            found.append(f"--layout has {len(self.layout)} words for 2 models")
        if self.plot is not None:
            found += common_flags.file_problems("plot", self.plot, (".png",))
            if find_spec("matplotlib") is None:
                found.append("--plot needs matplotlib: pip install matplotlib")
        if found:
            raise ConfigError(found)


FIELDS = fields_of(DiffConfig, "paths")
LINE = CommandLine(
    "diff",
    FIELDS,
    ("A B", "The two checkpoints: folders, files, names on a hub, or base+adapter."),
    HELP,
    [
        ("Compare a fine-tuned model with its base:", "./base ./math"),
        (
            "Check what folding an adapter lost, and draw the change by layer:",
            "./math_folded ./base+./math_lora --top 30 --plot changes.png",
        ),
    ],
)


def main(argv: Sequence[str]) -> None:
    """Run `python -m paddle_merge diff *argv`. Raises MergeError."""
    run_line(LINE, argv, _run)


def _run(paths: list[str], flags: dict[str, Any]) -> None:
    config = DiffConfig(paths, **flags)
    report = diff(config)
    from .show import lines

    print(json.dumps(report, indent=2) if config.json else "\n".join(lines(report, config.top)))


def diff(config: DiffConfig, progress: bool | None = None) -> dict[str, Any]:
    """Compare two checkpoints; return what --json prints, and draw the plot if one is asked for.

    progress: whether to show a progress bar; None (default): if standard error is a terminal.
    Raises MergeError (ConfigError, CheckpointError, WorkError, OutputError), each listing all problems found.
    """
    attempt = Attempts()
    attempt(config.check)
    models = None
    if len(config.paths) == 2:
        from .diff import open_models  # which reading flags does without

        layouts = (config.layout[0], config.layout[-1]) if config.layout and not attempt.errors else (None, None)
        models = attempt(open_models, (config.paths[0], config.paths[1]), layouts, config.merge_prefix)
    if models is not None and config.plot is not None and not models.has_layers:
        attempt.errors.append(CheckpointError("--plot draws layers, but no tensor's name contains the number of a layer"))
    attempt.finish()
    assert models is not None
    from .diff import compare

    report = compare(models, common_flags.workers(config.n_process), progress)
    if config.plot is not None:
        from .plot import plot

        plot(report, config.plot)
    return report
