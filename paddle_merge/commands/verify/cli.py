"""python -m paddle_merge verify: whether a merge's output is still what the merge wrote."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import ConfigError
from ...recipe import fields
from ...recipe.fields import _flag, to_types
from ..command import set_up_logging
from ..flags import build_app, normal_form
from ..tables import count, facts, shown, size

HELP = """Tell whether a merged checkpoint is what the merge wrote, and whether its inputs still make it.

Reads every byte of the output and compares it with merge_lock.json, the record of what the merge read and wrote: every
tensor, what stands around the tensors, config, tokenizer. Then makes a sample of the tensors again from the inputs, or all
of them with --full, without writing anything, and compares inputs and results with the record. Says which tensor, file or
input is off, if any; the exit status is then 1. README.md, the model card, may be edited.
"""
EPILOG = """[bold]Examples[/bold] (after python -m paddle_merge):

verify ./merged

verify ./merged --full --n_process 8
"""
SAMPLE = 16
_WHAT, _RUN = "What to make again", "Running"


@dataclass
class VerifyConfig:
    """Everything a verification can be told. paths: the merge's output folder."""

    paths: list[str]
    sample: int | None = _flag(
        _WHAT,
        "How many tensors to make again from the inputs, drawn anew each time, some of every kind. If it isn't given, inputs"
        " that are gone are no error.",
        shown=str(SAMPLE),
    )
    full: bool = _flag(_WHAT, "Make all tensors again.", False)
    json: bool = _flag(_RUN, "Print what was found as JSON.", False)
    n_process: int = _flag(_RUN, "How many workers.", 1)

    def __post_init__(self) -> None:
        """Raises ConfigError."""
        to_types(self)

    def check(self) -> None:
        """Raises ConfigError listing everything wrong."""
        found = fields.of_fields(self)
        if len(self.paths) != 1:
            found.append(f"give one output folder of a merge, not {len(self.paths)}: python -m paddle_merge verify OUT")
        elif not os.path.isdir(self.paths[0]):
            found.append(f"{self.paths[0]}: no such folder")
        if self.sample is not None and self.sample < 0:
            found.append(f"--sample {self.sample} must be at least 0")
        if self.sample is not None and self.full:
            found.append("--sample and --full can't both be given")
        if self.n_process < 1:
            found.append(f"--n_process {self.n_process} must be at least 1")
        if found:
            raise ConfigError(found)


FIELDS = {item.name: item for item in dataclasses.fields(VerifyConfig) if item.name != "paths"}


def main(argv: Sequence[str]) -> None:
    """python -m paddle_merge verify *argv. Raises MergeError."""
    words = normal_form(argv, FIELDS, {}, "", many=True) or ["--help"]
    argument = "OUT", "The folder that a merge wrote."
    build_app(FIELDS, _run, argument, HELP, EPILOG, many=True)(words, prog_name="python -m paddle_merge verify")


def _run(paths: list[str] | None, verbose: bool, quiet: bool, flags: dict[str, Any]) -> None:
    set_up_logging(verbose, quiet)
    config = VerifyConfig(paths or [], **{name: value for name, value in flags.items() if value not in (None, [])})
    config.check()
    from .verify import verify  # and with it NumPy

    sample = None if config.full else SAMPLE if config.sample is None else config.sample
    tolerant = config.sample is None and not config.full
    found = verify(config.paths[0], sample, config.n_process, tolerant)
    if config.json:
        print(json.dumps({"same": not found.off, **dataclasses.asdict(found)}, indent=2))
    else:
        rows = [
            ("output", f"{found.output}: {size(found.nbytes)}, {count(found.tensors)} tensors, {count(found.files)} files"),
            ("made again", f"{count(len(found.remade))} of {count(found.tensors)} tensors, from the inputs"),
            *(("note", sentence) for sentence in found.notes),
            ("verdict", f"{count(len(found.off))} off" if found.off else "what the merge wrote"),
        ]
        print("\n".join(facts(rows, 0)))
        for sentence in found.off:
            print(f"off: {shown(sentence)}", file=sys.stderr)
    if found.off:
        sys.exit(1)
