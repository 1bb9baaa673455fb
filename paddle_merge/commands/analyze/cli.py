"""python -m paddle_merge analyze: what models changed in their base, and what a merge would make of it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...checkpoints.names import LAYOUTS
from ...errors import Attempts, ConfigError, OutputError
from ...methods.magprune import Magprune
from ...recipe import fields
from ...recipe.fields import _flag, to_types
from ..command import set_up_logging
from ..flags import build_app, normal_form
from ..threads import cores

HELP = """Tell what models changed in the base that they were fine-tuned from, before merging them: of each task vector
(model minus base) how long it is and what it changed; of each pair their cosine, how far they overlap, and where their signs
conflict; and what share of the changes each method would drop. In total, by layer, by kind of tensor, and tensor by tensor.
Sentences say what stands out: a model that doesn't belong, one that is there twice, what speaks for which method.

Takes whatever a merge takes, `base+adapter` too. Reads block by block: memory doesn't grow with the models, and the numbers
are the same for any --n_process. They are those of a merge with these flags, all weights 1, and seed 0.

relative is the norm of the task vector over the base's. changed counts elements that differ from the base; overlap is those
that changed in both models of a pair, of those that changed in either; of trimmed, the same of what trim would keep. sign
conflict is the share of those changed in both whose signs differ, and by weight, each counted by the product of both
changes. Mass is the sum of magnitudes. outvoted is what sign election drops; cancels, what cancels when models are added;
moves, how far sparsifying moves task vectors, in their lengths.

The exit status is 0 whatever stands out; scripts read "advice" in --json.
"""
EPILOG = """[bold]Examples[/bold] (after python -m paddle_merge):

analyze --base_model_path ./base ./math ./code ./chat

analyze --base_model_path ./base ./math ./base+./code_lora --reserve_p 0.5 --html report.html
"""
_WHAT, _TUNE, _OUTPUT, _RUN = "What to analyse", "Parameters of the methods", "Output", "Running"


@dataclass
class AnalyzeConfig:
    """Everything an analysis can be told. paths: of the models, before those of model_path_list."""

    paths: list[str] = dataclasses.field(default_factory=list)
    base_model_path: str | None = _flag(_WHAT, "The model that all of them were fine-tuned from.")
    model_path_list: list[str] | None = _flag(_WHAT, "The models, as in a merge; the same as words without a flag.")
    layout: list[str] | None = _flag(
        _WHAT,
        "How they store Linear weights, if that can't be told: one word for all, or one for each model and then the base.",
        choices=LAYOUTS,
        shown="detected",
    )
    merge_prefix: str = _flag(
        _WHAT,
        "Which weights of a folder: model (model.safetensors) or master_weights.",
        "model",
        choices=("model", "master_weights"),
    )
    reserve_p: float = _flag(_TUNE, "The fraction of elements that trim, dare and magprune keep.", 0.2)
    epsilon: float | None = _flag(
        _TUNE, "magprune: full width of the range of keep probabilities.", shown="0.14, or what reserve_p leaves room for"
    )
    rescale: bool = _flag(_TUNE, "Scale up what is kept, as merges do.", True)
    top: int = _flag(_OUTPUT, "How many kinds, layers and tensors the table names: those that moved most.", 10)
    json: bool = _flag(_OUTPUT, "Print everything, every tensor, as JSON.", False)
    html: str | None = _flag(
        _OUTPUT, "Write the report, with pictures, as a page: one file that needs no network.", shown="none"
    )
    n_process: int | None = _flag(_RUN, "How many workers.", shown="one for each core, at most 8")

    def __post_init__(self) -> None:
        """Raises ConfigError."""
        to_types(self)
        if self.html is not None:
            self.html = os.path.expanduser(self.html)

    @property
    def models(self) -> list[str]:
        return [*self.paths, *(self.model_path_list or ())]

    @property
    def width(self) -> float:
        """magprune's epsilon."""
        budget = 2.0 * min(self.reserve_p, 1.0 - self.reserve_p)
        return max(0.0, min(0.14, budget)) if self.epsilon is None else self.epsilon

    def check(self) -> None:
        """Raises ConfigError listing everything wrong, as far as no checkpoint needs to be looked at."""
        found = fields.of_fields(self)
        if not self.base_model_path:
            found.append("give the model that all were fine-tuned from: --base_model_path BASE")
        if not self.models:
            found.append("give at least one model: python -m paddle_merge analyze --base_model_path BASE A B")
        if self.layout is not None and len(self.layout) not in (1, len(self.models) + 1):
            found.append(f"--layout has {len(self.layout)} words for {len(self.models) + 1} models (the base last)")
        found += Magprune(self.reserve_p, self.width).problems()
        if self.top < 0:
            found.append(f"--top {self.top} must be at least 0")
        if self.n_process is not None and self.n_process < 1:
            found.append(f"--n_process {self.n_process} must be at least 1")
        if self.html is not None:
            if not self.html.lower().endswith((".html", ".htm")):
                found.append(f"--html {self.html} must end in .html")
            if not os.path.isdir(os.path.dirname(self.html) or "."):
                found.append(f"--html {self.html}: no such folder; make it first")
            if os.path.isdir(self.html):
                found.append(f"--html {self.html}: is a folder")
        if found:
            raise ConfigError(found)


FIELDS = {item.name: item for item in dataclasses.fields(AnalyzeConfig) if item.name != "paths"}


def main(argv: Sequence[str]) -> None:
    """python -m paddle_merge analyze *argv. Raises MergeError."""
    words = normal_form(argv, FIELDS, {}, "", many=True) or ["--help"]
    argument = "MODEL...", "The models: folders, files, names on a hub, or base+adapter."
    build_app(FIELDS, _run, argument, HELP, EPILOG, many=True)(words, prog_name="python -m paddle_merge analyze")


def _run(paths: list[str] | None, verbose: bool, quiet: bool, flags: dict[str, Any]) -> None:
    set_up_logging(verbose, quiet)
    config = AnalyzeConfig(paths or [], **{name: value for name, value in flags.items() if value not in (None, [])})
    report = analyze(config)
    from .show import lines

    print(json.dumps(report, indent=2) if config.json else "\n".join(lines(report, config.top)))


def analyze(config: AnalyzeConfig, progress: bool | None = None) -> dict[str, Any]:
    """Analyse as `config` says; return what --json prints, and write the page if one is asked for.

    progress: whether to show a progress bar; None: if standard error is a terminal.
    Raises MergeError (ConfigError, CheckpointError, WorkError, OutputError), each listing all problems found.
    """
    from ...conversion.inputs import open_together
    from .report import Asked, analyse  # and with it Numba

    attempt = Attempts()
    attempt(config.check)
    layouts = list(config.layout or ()) if not attempt.errors else []
    specs = [*config.models, *filter(None, [config.base_model_path])]
    layouts = layouts * len(specs) if len(layouts) == 1 else layouts
    opened = attempt(open_together, specs, layouts, config.merge_prefix) if specs else None
    attempt.finish()
    assert opened is not None
    asked = Asked(config.reserve_p, config.width, config.rescale)
    report = analyse(opened, asked, config.n_process or min(8, cores()), progress)
    if config.html is not None:
        _write(config.html, report)
    return report


def _write(path: str, report: dict[str, Any]) -> None:
    """The whole page or none. Raises OutputError."""
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
