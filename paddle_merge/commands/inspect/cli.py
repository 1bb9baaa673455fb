"""The flags of `python -m paddle_merge inspect`, and what they run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...checkpoints.names import letters
from ...errors import Attempts, ConfigError
from ...recipe.fields import to_types
from .. import common_flags
from ..flags import PROGRAM, CommandLine, fields_of
from ..run_line import run_line
from .checkpoint import look
from .headers import differences

HELP = """Describe checkpoints and LoRA adapters, and how they differ.

Prints format, layout and how it was detected, dtypes, numbers of parameters and layers, tied tensors, metadata, and signs
of quantisation; of LoRA adapters rank, scale, and target layers. Only headers and config.json are read, and, if both are
stored, lm_head and the embedding, to see whether they are equal.

Takes what a merge takes: folders and files of any format, names on a hub, adapters, and `base+adapter`. Given several, it
also lists the differences in names, shapes, dtypes, layout, and the settings in config.json that affect how the weights
are used. Tensors of different layouts are compared in the layout of the first checkpoint if possible. `python -m
paddle_merge diff` compares the values.
"""


@dataclass
class InspectConfig:
    """The settings of an inspection. paths: the checkpoints and adapters."""

    paths: list[str]
    merge_prefix: str = common_flags.merge_prefix("What to inspect")
    json: bool = common_flags.as_json("Print the result as JSON.")

    def __post_init__(self) -> None:
        """Convert the fields to their types. Raises ConfigError."""
        to_types(self)


FIELDS = fields_of(InspectConfig, "paths")
LINE = CommandLine(
    "inspect",
    FIELDS,
    ("PATH...", "Folders, files, names on a hub, adapters, or base+adapter."),
    HELP,
    [
        ("Describe one checkpoint:", "./model"),
        ("Describe three and list their differences, as JSON:", "./base ./math ./code+./code_lora --json"),
    ],
)


def main(argv: Sequence[str]) -> None:
    """Run `python -m paddle_merge inspect *argv`. Raises MergeError."""
    run_line(LINE, argv, _run)


def _run(paths: list[str], flags: dict[str, Any]) -> None:
    config = InspectConfig(paths, **flags)
    found = inspect(config)
    from .show import lines

    print(json.dumps(found, indent=2) if config.json else "\n".join(lines(found)))


def inspect(config: InspectConfig) -> dict[str, Any]:
    """Describe checkpoints; return what --json prints: a list `checkpoints`, and `differs` if there are several.

    Raises ConfigError or CheckpointError with all problems found.
    """
    wrong = common_flags.problems(config)
    if not config.paths:
        wrong.append(f"give at least one checkpoint: {PROGRAM} inspect PATH...")
    if wrong:
        raise ConfigError(wrong)
    attempt = Attempts()
    looked = [one for path in config.paths if (one := attempt(look, path, config.merge_prefix))]
    attempt.finish()
    result: dict[str, Any] = {"checkpoints": [one.said for one in looked]}
    pairs = [(one.checkpoint, one.said) for one in looked if one.checkpoint is not None]
    if len(pairs) > 1:
        held = [letter for letter, one in zip(letters(), looked, strict=False) if one.checkpoint is not None]
        result["differs"] = {
            "of": held,
            **differences([one for one, _ in pairs], [said for _, said in pairs], config.merge_prefix),
        }
    return result
