"""The command line of `python -m paddle_merge expert-stats`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ...errors import ConfigError, OutputError
from ...recipe.fields import flag, to_types
from .. import common_flags
from ..flags import PROGRAM, CommandLine, fields_of
from ..run_line import run_line

HELP = """Measure how much each expert of a mixture of experts is used.

Runs the model on texts by transformers 5, and counts for every layer and expert to how many tokens it is applied, with which
gates, and how large its outputs are. A recipe chooses by these numbers which experts are kept:
`keep_experts: {count: 64, by: reap, statistics: stats.json}`.

Texts should be like those that the smaller model is for; a few hundred thousand tokens are enough. Whole texts are counted,
padding isn't.
"""
_WHAT = "What to measure"


@dataclass
class ExpertStatsConfig:
    """The settings of a measurement. paths: the model's folder."""

    paths: list[str] = field(default_factory=list)
    prompts: str | None = flag(
        _WHAT, 'A JSONL file of texts: {"text": "..."}, or {"prompt": "...", "completion": "..."}, which are joined.'
    )
    output: str | None = flag(common_flags.OUTPUT, "The JSON file to write.")
    max_length: int | None = flag(
        common_flags.RUNNING,
        "Tokens that are computed together; longer texts are cut.",
        shown="what the model allows, at most 2048",
        least=2,
    )
    batch_size: int = flag(common_flags.RUNNING, "Texts that are computed at the same time.", 8, least=1)
    device: str | None = flag(common_flags.RUNNING, "cpu, gpu or gpu:1.", shown="a GPU, if there is one")
    dtype: str | None = flag(
        common_flags.RUNNING,
        "The dtype to compute in.",
        choices=("float32", "bfloat16", "float16"),
        shown="the model's on a GPU, float32 on a CPU",
    )

    def __post_init__(self) -> None:
        """Convert the fields to their types. Raises ConfigError."""
        to_types(self)
        self.prompts, self.output = (os.path.expanduser(one) if one else one for one in (self.prompts, self.output))

    def check(self) -> None:
        """Raise ConfigError listing everything that is wrong with the flags."""
        found = common_flags.problems(self)
        if len(self.paths) != 1:
            found.append(f"give one model: {PROGRAM} expert-stats ./model --prompts texts.jsonl --output stats.json")
        elif not os.path.isdir(os.path.expanduser(self.paths[0])):
            found.append(f"{self.paths[0]}: must be the folder of a model, with its config.json and tokenizer")
        if not self.prompts:
            found.append("give the texts to measure on: --prompts texts.jsonl")
        if not self.output:
            found.append("give the file to write: --output stats.json")
        else:
            found += common_flags.file_problems("output", self.output, (".json",))
        if found:
            raise ConfigError(found)


FIELDS = fields_of(ExpertStatsConfig, "paths")
LINE = CommandLine(
    "expert-stats",
    FIELDS,
    ("MODEL", "The folder of a mixture of experts."),
    HELP,
    [("Before a recipe with keep_experts:", "./moe --prompts texts.jsonl --output stats.json")],
)


def main(argv: Sequence[str]) -> None:
    """Run `python -m paddle_merge expert-stats *argv`. Raises MergeError."""
    run_line(LINE, argv, _run)


def _run(paths: list[str], flags: dict[str, Any]) -> None:
    config = ExpertStatsConfig(paths, **flags)
    config.check()
    from ...search.evaluators.libraries.models import ModelSettings
    from .measure import measure

    settings = ModelSettings(
        device=config.device, dtype=config.dtype, max_length=config.max_length, batch_size=config.batch_size
    )
    found = measure(config.paths[0], str(config.prompts), settings)
    partial = f"{config.output}.partial"
    try:
        with open(partial, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(found.to_json())
        os.replace(partial, str(config.output))
    except OSError as error:
        raise OutputError(f"--output {config.output}: can't be written ({error.strerror})") from None
    unused = {number: sum(not count for count in one.count) for number, one in found.layers.items()}
    print(f"{found.tokens} tokens, {len(found.layers)} layers of experts: {config.output}")
    if any(unused.values()):
        most = max(unused, key=lambda number: unused[number])
        print(f"{sum(unused.values())} experts are sent no token, {unused[most]} of them in layer {most}")
