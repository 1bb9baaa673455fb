"""python -m paddle_merge diff: what the numbers of two checkpoints differ by."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from ...checkpoints.names import LAYOUTS
from ...errors import CheckpointError, ConfigError, MergeError
from ...recipe import fields
from ...recipe.fields import _flag, to_types
from ..command import set_up_logging
from ..flags import build_app, normal_form
from ..threads import cores

HELP = """Tell what the numbers of two checkpoints differ by: in total, by layer, by kind of tensor, and tensor by tensor.

Takes whatever a merge takes, `base+adapter` too, which is read as if the adapter were folded in. Checkpoints of different
formats and layouts are compared in A's. Reads block by block: memory doesn't grow with the models, and the numbers are the
same for any --n_process.

relative is the norm of A - B over the norm of A; cosine is of A and B; max and mean are of the absolute difference; changed
counts the elements that aren't equal as numbers (zeros of both signs are equal, and so are NaN and NaN). Sums are of the
elements that are finite in both; NaN and Inf are counted and named. The histogram tells how many numbers of the tensor's
dtype lie between: one unit in the last place apart are neighbours. Of two dtypes it is the coarser one's.

The exit status is 0 whether they differ or not (1: something is wrong, such as a file that can't be read); what a script
wants to know is "same" in --json.
"""
EPILOG = """[bold]Examples[/bold] (after python -m paddle_merge):

diff ./base ./math

diff ./math_folded ./base+./math_lora --top 30 --plot moved.png
"""
_WHAT, _OUTPUT, _RUN = "What to compare", "Output", "Running"


@dataclass
class DiffConfig:
    """Everything a comparison can be told. paths: A and B."""

    paths: list[str]
    layout: list[str] | None = _flag(
        _WHAT,
        "How the two store Linear weights, if that can't be told: one word for both, or one for A and one for B.",
        choices=LAYOUTS,
        shown="detected",
    )
    merge_prefix: str = _flag(
        _WHAT,
        "Which weights of a folder: model (model.safetensors) or master_weights.",
        "model",
        choices=("model", "master_weights"),
    )
    top: int = _flag(_OUTPUT, "How many layers, kinds and tensors the table names: those that moved most.", 10)
    json: bool = _flag(_OUTPUT, "Print everything, every tensor, as JSON.", False)
    plot: str | None = _flag(_OUTPUT, "Draw how far each layer moved: a PNG file. Needs matplotlib.", shown="none")
    n_process: int | None = _flag(_RUN, "How many workers.", shown="one for each core, at most 8")

    def __post_init__(self) -> None:
        """Raises ConfigError."""
        to_types(self)
        if self.plot is not None:
            self.plot = os.path.expanduser(self.plot)

    def check(self) -> None:
        """Raises ConfigError listing everything wrong, as far as no checkpoint needs to be looked at."""
        found = fields.of_fields(self)
        if len(self.paths) != 2:
            found.append(f"give two checkpoints, not {len(self.paths)}: python -m paddle_merge diff A B")
        if self.layout is not None and len(self.layout) > 2:
            found.append(f"--layout has {len(self.layout)} words for 2 models")
        if self.top < 0:
            found.append(f"--top {self.top} must be at least 0")
        if self.n_process is not None and self.n_process < 1:
            found.append(f"--n_process {self.n_process} must be at least 1")
        if self.plot is not None:
            if not self.plot.lower().endswith(".png"):
                found.append(f"--plot {self.plot} must end in .png")
            if not os.path.isdir(os.path.dirname(self.plot) or "."):
                found.append(f"--plot {self.plot}: no such folder; make it first")
            if find_spec("matplotlib") is None:
                found.append("--plot needs matplotlib: pip install matplotlib")
        if found:
            raise ConfigError(found)


FIELDS = {item.name: item for item in dataclasses.fields(DiffConfig) if item.name != "paths"}


def main(argv: Sequence[str]) -> None:
    """python -m paddle_merge diff *argv. Raises MergeError."""
    words = normal_form(argv, FIELDS, {}, "", many=True) or ["--help"]
    argument = "A B", "The two checkpoints: folders, files, names on a hub, or base+adapter."
    build_app(FIELDS, _run, argument, HELP, EPILOG, many=True)(words, prog_name="python -m paddle_merge diff")


def _run(paths: list[str] | None, verbose: bool, quiet: bool, flags: dict[str, Any]) -> None:
    set_up_logging(verbose, quiet)
    config = DiffConfig(paths or [], **{name: value for name, value in flags.items() if value not in (None, [])})
    report = diff(config)
    from .show import lines

    print(json.dumps(report, indent=2) if config.json else "\n".join(lines(report, config.top)))


def diff(config: DiffConfig, progress: bool | None = None) -> dict[str, Any]:
    """Compare as `config` says; return what --json prints, and draw the picture if one is asked for.

    progress: whether to show a progress bar; None: if standard error is a terminal.
    Raises MergeError (ConfigError, CheckpointError, WorkError, OutputError), each listing all problems found.
    """
    found: list[MergeError] = []
    models = None
    try:
        config.check()
    except ConfigError as error:
        found.append(error)
    if len(config.paths) == 2:
        from .diff import compare, open_models  # and with it Numba

        try:
            layouts = (config.layout[0], config.layout[-1]) if config.layout and not found else (None, None)
            models = open_models((config.paths[0], config.paths[1]), layouts, config.merge_prefix)
        except MergeError as error:
            found.append(error)
    if models is not None and config.plot is not None and not models.has_layers:
        found.append(CheckpointError("--plot draws layers, but no names of tensors tell of any"))
    if found:
        raise type(found[0])([problem for error in found for problem in error.problems])
    assert models is not None
    report = compare(models, config.n_process or min(8, cores()), progress)
    if config.plot is not None:
        from .plot import plot

        plot(report, config.plot)
    return report
