"""The flags of `python -m paddle_merge analyze`, and what they run."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import Attempts, ConfigError, OutputError
from ...methods.paddlenlp import sparsifier_problems
from ...recipe.fields import flag, to_types
from ...recipe.wording import as_flags
from .. import common_flags
from ..flags import PROGRAM, CommandLine, fields_of
from ..run_line import run_line

HELP = """Measure what fine-tuning changed in each model, before a merge.

For each model, the length of its task vector (model minus base) and how many elements changed; for each pair of models,
the cosine similarity of their task vectors, and how far their changes overlap and conflict in sign; for each merge
method, the share of the changes that it would drop. All of it in total, by layer, by kind of tensor, and by tensor. The
findings come first: a model that was not fine-tuned from this base, for example, a model that is given twice, or
measurements that favour a method.

Takes what a merge takes, `base+adapter` too. Tensors are read block by block, so memory doesn't grow with the models, and
the results are the same for any --n_process. The methods are those of a merge with these flags, with all weights 1 and
seed 0.

The columns: relative is the norm of the task vector divided by the norm of the base. changed is the share of elements
that differ from the base. overlap is the number of elements that changed in both models of a pair, divided by the number
that changed in either; of trimmed is the same of the elements that trim keeps. sign conflict is the share of the elements
changed in both whose signs differ; by weight, with each element weighted by the magnitude of the product of the two
changes. mass is the sum of the magnitudes of changes. outvoted is the mass that sign election drops, cancels the mass
that is lost where signs differ when models are added, and moves the distance between task vectors and sparsified task
vectors, divided by the length of the task vectors.

The exit status is 0 whatever the findings are; scripts read "advice" in the output of --json.
"""
_WHAT, _TUNE = "What to analyse", "Parameters of the methods"


@dataclass
class AnalyzeConfig:
    """The settings of an analysis. paths: of models, before those of model_path_list."""

    paths: list[str] = dataclasses.field(default_factory=list)
    base_model_path: str | None = flag(_WHAT, "The base model that all models were fine-tuned from.")
    model_path_list: list[str] | None = flag(_WHAT, "The models, as in a merge; the same as words without a flag.")
    layout: list[str] | None = common_flags.layout(
        _WHAT, "one word for all checkpoints, or one for each model and then one for the base"
    )
    merge_prefix: str = common_flags.merge_prefix(_WHAT)
    reserve_p: float = flag(_TUNE, "trim, dare, magprune: the fraction of elements to keep.", 0.2)
    epsilon: float | None = flag(
        _TUNE,
        "magprune: the width of the range of keep probabilities.",
        shown="0.14, or less if reserve_p is too near 0 or 1 for that",
    )
    rescale: bool = flag(_TUNE, "Scale up the elements that are kept, as merges do.", True)
    top: int = common_flags.top("kinds of tensors, layers, and tensors")
    json: bool = common_flags.as_json("Print all results, for every tensor, as JSON.")
    html: str | None = flag(
        common_flags.OUTPUT,
        "Write the results, with charts, to this HTML file. The page needs no other files and no network.",
        shown="none",
    )
    n_process: int | None = common_flags.n_process()

    def __post_init__(self) -> None:
        """Convert the fields to their types. Raises ConfigError."""
        to_types(self)
        if self.html is not None:
            self.html = os.path.expanduser(self.html)

    @property
    def models(self) -> list[str]:
        """All models, without the base."""
        return [*self.paths, *(self.model_path_list or ())]

    @property
    def width(self) -> float:
        """The epsilon of magprune: as given, or its default."""
        budget = 2.0 * min(self.reserve_p, 1.0 - self.reserve_p)
        return max(0.0, min(0.14, budget)) if self.epsilon is None else self.epsilon

    def check(self) -> None:
        """Raise ConfigError listing everything that is wrong, as far as no checkpoint has to be opened."""
        found = common_flags.problems(self)
        if not self.base_model_path:
            found.append("give the base model that all models were fine-tuned from: --base_model_path BASE")
        if not self.models:
            found.append(f"give at least one model: {PROGRAM} analyze --base_model_path BASE A B")
        if self.layout is not None and len(self.layout) not in (1, len(self.models) + 1):
            found.append(f"--layout has {len(self.layout)} words for {len(self.models) + 1} models (the base last)")
        found += map(as_flags, sparsifier_problems("magprune", self.reserve_p, self.width))
        if self.html is not None:
            found += common_flags.file_problems("html", self.html, (".html", ".htm"))
        if found:
            raise ConfigError(found)


FIELDS = fields_of(AnalyzeConfig, "paths")
LINE = CommandLine(
    "analyze",
    FIELDS,
    ("MODEL...", "The models: folders, files, names on a hub, or base+adapter."),
    HELP,
    [
        ("Measure three models:", "--base_model_path ./base ./math ./code ./chat"),
        (
            "Write a page about a model and an adapter, with methods that keep half of the elements:",
            "--base_model_path ./base ./math ./base+./code_lora --reserve_p 0.5 --html report.html",
        ),
    ],
)


def main(argv: Sequence[str]) -> None:
    """Run `python -m paddle_merge analyze *argv`. Raises MergeError."""
    run_line(LINE, argv, _run)


def _run(paths: list[str], flags: dict[str, Any]) -> None:
    config = AnalyzeConfig(paths, **flags)
    report = analyze(config)
    from .show import lines

    print(json.dumps(report, indent=2) if config.json else "\n".join(lines(report, config.top)))


def analyze(config: AnalyzeConfig, progress: bool | None = None) -> dict[str, Any]:
    """Analyse models; return what --json prints, and write the HTML page if one is asked for.

    progress: whether to show a progress bar; None (default): if standard error is a terminal.
    Raises MergeError (ConfigError, CheckpointError, WorkError, OutputError), each listing all problems found.
    """
    from ...conversion.inputs import open_together

    attempt = Attempts()
    attempt(config.check)
    layouts = list(config.layout or ()) if not attempt.errors else []
    specs = [*config.models, *filter(None, [config.base_model_path])]
    layouts = layouts * len(specs) if len(layouts) == 1 else layouts
    opened = attempt(open_together, specs, layouts, config.merge_prefix) if specs else None
    attempt.finish()
    assert opened is not None
    from .report import Asked, analyse  # which reading flags does without

    asked = Asked(config.reserve_p, config.width, config.rescale)
    report = analyse(opened, asked, common_flags.workers(config.n_process), progress)
    if config.html is not None:
        _write(config.html, report)
    return report


def _write(path: str, report: dict[str, Any]) -> None:
    """Write the whole page or nothing. Raises OutputError."""
    from .page import page

    partial = f"{path}.partial"
    try:
        with open(partial, "wb") as file:
            file.write(page(report).encode("utf-8", "backslashreplace"))
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.remove(partial)
        raise OutputError(f"--html {path}: can't be written ({error.strerror})") from None
