"""The flags of `python -m paddle_merge verify`, and what they run."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import ConfigError
from ...parsing import one_line, size_text
from ...recipe.fields import flag, to_types
from .. import common_flags
from ..flags import PROGRAM, CommandLine, fields_of
from ..run_line import run_line
from ..tables import count, facts

HELP = """Check that a merged checkpoint is what the merge wrote, and that its inputs still give the same result.

Reads every byte of the output and compares it with merge_lock.json, the record of what the merge read and wrote: every
tensor, the headers of the files, config, and tokenizer. Then computes a sample of the tensors again from the inputs (all
of them with --full), without writing anything, and compares inputs and results with the record. Reports every tensor,
file, or input that differs; the exit status is then 1. The model card, README.md, may be edited.
"""
SAMPLE = 16
_WHAT = "What to compute again"


@dataclass
class VerifyConfig:
    """The settings of a verification. paths: the output folder of a merge."""

    paths: list[str]
    sample: int | None = flag(
        _WHAT,
        "Number of tensors to compute again from the inputs: a random choice with tensors of every kind. Without this flag,"
        " missing inputs are reported but are no error.",
        shown=str(SAMPLE),
        least=0,
    )
    full: bool = flag(_WHAT, "Compute all tensors again.", False)
    json: bool = common_flags.as_json("Print the findings as JSON.", common_flags.RUNNING)
    n_process: int = flag(common_flags.RUNNING, "Number of worker processes.", 1, least=1)

    def __post_init__(self) -> None:
        """Convert the fields to their types. Raises ConfigError."""
        to_types(self)
        self.paths = [os.path.expanduser(path) for path in self.paths]

    def check(self) -> None:
        """Raise ConfigError listing everything that is wrong."""
        found = common_flags.problems(self)
        if len(self.paths) != 1:
            found.append(f"give one output folder of a merge, not {len(self.paths)}: {PROGRAM} verify OUT")
        elif not os.path.isdir(self.paths[0]):
            found.append(f"{self.paths[0]}: no such folder")
        if self.sample is not None and self.full:
            found.append("--sample and --full can't be used together")
        if found:
            raise ConfigError(found)


FIELDS = fields_of(VerifyConfig, "paths")
LINE = CommandLine(
    "verify",
    FIELDS,
    ("OUT", "The output folder of a merge."),
    HELP,
    [
        ("Check the output, and a sample of its tensors against the inputs:", "./merged"),
        ("Compute all tensors again:", "./merged --full --n_process 8"),
    ],
)


def main(argv: Sequence[str]) -> None:
    """Run `python -m paddle_merge verify *argv`. Raises MergeError."""
    run_line(LINE, argv, _run)


def _run(paths: list[str], flags: dict[str, Any]) -> None:
    config = VerifyConfig(paths, **flags)
    config.check()
    from .verify import verify  # imports NumPy

    sample = None if config.full else SAMPLE if config.sample is None else config.sample
    tolerant = config.sample is None and not config.full
    found = verify(config.paths[0], sample, config.n_process, tolerant)
    if config.json:
        print(json.dumps({"same": not found.off, **dataclasses.asdict(found)}, indent=2))
    else:
        held = f"{size_text(found.nbytes)}, {count(found.tensors, 'tensor')}, {count(found.files, 'file')}"
        rows = [
            ("output", f"{found.output}: {held}"),
            ("computed again", f"{count(len(found.remade))} of {count(found.tensors, 'tensor')}, from the inputs"),
            *(("note", sentence) for sentence in found.notes),
            ("result", count(len(found.off), "difference") if found.off else "identical to what the merge wrote"),
        ]
        print("\n".join(facts(rows, 0)))
        for sentence in found.off:
            print(f"differs: {one_line(sentence)}", file=sys.stderr)
    if found.off:
        sys.exit(1)
