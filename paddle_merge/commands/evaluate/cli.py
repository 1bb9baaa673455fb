"""The flags of `python -m paddle_merge evaluate`, and what they run."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import Attempts, ConfigError, OutputError
from ...recipe.fields import flag, to_types
from .. import common_flags
from ..flags import PROGRAM, CommandLine, fields_of
from ..run_line import run_line

log = logging.getLogger("paddle_merge")
HELP = """Score models side by side, with standard errors and what each costs.

Takes checkpoints, as a merge does, and recipes, whose merge is scored. The file behind --with says how, in a section
`evaluate`: a command, a Python function, the perplexity of texts, multiple choice, or tasks of lm-eval; with `objectives`
(which metrics, and whether larger is better) and `data` (the samples). A search file has all of this, too.

Standard errors are those of the mean over samples, where the evaluator tells its scores per sample. A model whose evaluation
fails is shown with the reason, and the others are scored; the exit status is then 1.
"""
_WHAT = "What to score"


@dataclass
class EvaluateConfig:
    """The settings of an evaluation. paths: the models."""

    paths: list[str] = dataclasses.field(default_factory=list)
    with_: str | None = flag(_WHAT, "The file that says how models are scored.")
    split: str | None = flag(
        _WHAT, "Which of the file's samples to score.", choices=("report", "search"), shown="report, if the file names it"
    )
    seed: int | None = flag(_WHAT, "The seed for what the evaluator draws at random.", shown="the file's, or 0", least=0)
    json: bool = common_flags.as_json("Print all results as JSON.")
    markdown: str | None = flag(
        common_flags.OUTPUT, "Write the table into this Markdown file; with - print it.", shown="none"
    )
    card: bool = flag(
        common_flags.OUTPUT,
        "Write the table into the model card, README.md, of each model that a merge wrote, and its scores into the card's"
        " metadata, where hubs read them. Those of the same evaluator, samples and split that it has already are replaced.",
        False,
    )
    workers: int = flag(common_flags.RUNNING, "How many models are scored at the same time.", 1, least=1)

    def __post_init__(self) -> None:
        """Convert the fields to their types. Raises ConfigError."""
        to_types(self)
        if self.markdown is not None:
            self.markdown = os.path.expanduser(self.markdown)

    def check(self) -> None:
        """Raise ConfigError listing everything that is wrong with the flags."""
        found = common_flags.problems(self)
        if not self.paths:
            found.append(f"give the models to score: {PROGRAM} evaluate ./base ./merged --with eval.yaml")
        if not self.with_:
            found.append("give the file that says how models are scored: --with eval.yaml")
        if self.markdown == "-" and self.json:
            found.append("--markdown - and --json both print; give one of them, or a file: --markdown table.md")
        elif self.markdown not in (None, "-"):
            found += common_flags.file_problems("markdown", self.markdown or "", (".md",))
        if found:
            raise ConfigError(found)


FIELDS = fields_of(EvaluateConfig, "paths")
LINE = CommandLine(
    "evaluate",
    FIELDS,
    ("MODEL ...", "The models: checkpoints, base+adapter, or recipes."),
    HELP,
    [
        ("Compare a merge with its inputs:", "./base ./math ./code ./merged --with eval.yaml"),
        ("Write the table into the merge's model card, too:", "./base ./merged --with eval.yaml --card"),
    ],
)


def main(argv: Sequence[str]) -> None:
    """Run `python -m paddle_merge evaluate *argv`. Raises MergeError."""
    run_line(LINE, argv, _run)


def _run(paths: list[str], flags: dict[str, Any]) -> None:
    config = EvaluateConfig(paths, **flags)
    config.check()
    assert config.with_ is not None
    from ...search.evaluate import Asked, prepare
    from .card import cards
    from .show import as_json, card_result, lines, markdown

    asked = Asked(
        models=config.paths,
        file=os.path.expanduser(config.with_),
        split=config.split,
        seed=config.seed,
        workers=config.workers,
        memory=common_flags.memory_for_inputs(config.workers),
    )
    attempt = Attempts()
    prepared = attempt(prepare, asked)
    to_write = attempt(cards, config.paths) if config.card else []
    attempt.finish()
    assert prepared is not None
    assert to_write is not None
    found = prepared.run()
    text = markdown(found)
    if config.json:
        print(json.dumps(as_json(found), indent=2))
    else:
        print(text if config.markdown == "-" else "\n".join(lines(found)))
    if config.markdown not in (None, "-"):
        try:
            with open(config.markdown or "", "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(f"{text}\n")
        except OSError as error:
            raise OutputError(f"--markdown {config.markdown}: can't be written ({error.strerror})") from None
    rows = {os.path.expanduser(row.model): row for row in found.rows}
    for card in to_write:
        if rows[card.folder].result.error:
            log.warning("%s is left as it is, since the model couldn't be scored", card.path)
        else:
            attempt(card.write, card_result(found, rows[card.folder], os.path.basename(asked.file)))
    attempt.finish()
    if found.failed:
        sys.exit(1)
