"""The merges of the demo, each given by the flags of a command line."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any

from ...recipe.config import MergeConfig
from ...records import record
from ...run.merge import merge


@record(frozen=True)
class Row:
    """A row of the table: a checkpoint that was trained, or merged from `models` with `options`, fields of MergeConfig."""

    name: str
    kind: str  # trained, merged, experiment
    folder: str
    models: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def config(self, base: str) -> MergeConfig:
        """Return the configuration of the merge. base: the folder of the base model."""
        paths: dict[str, Any] = {"model_path_list": list(self.models), "base_model_path": base, "output_path": self.folder}
        return MergeConfig(**self.options, **paths, overwrite=True)

    def flags(self) -> str:
        """Return the options as flags."""
        return shlex.join(word for name, value in self.options.items() for word in flag(name, value))


def flag(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no_{name}"]
    return [f"--{name}", *(str(item) for item in (value if isinstance(value, list) else [value]))]


def make(row: Row, base: str) -> None:
    """Make the merge of a row."""
    merge(row.config(base), progress=False)


def command(row: Row, base: str, output: str) -> str:
    """Return the command that repeats a merge, quoted for a shell."""
    start = ["python", "-m", "paddle_merge", *flag("model_path_list", list(row.models)), *flag("base_model_path", base)]
    return " ".join([shlex.join(start), row.flags(), shlex.join(["--output_path", output, "--overwrite"])])


def rows(folder: str, places: Sequence[str], seed: int) -> list[Row]:
    """Return the rows of the table: base, an expert for every place but the first, and the merges."""
    others = places[1:]
    base = Row("base", "trained", _inside(folder, "base"))
    experts = [Row(f"expert {place}", "trained", _inside(folder, f"expert {place}")) for place in others]
    every, two = tuple(row.folder for row in experts), tuple(row.folder for row in experts[:2])

    def merged(name: str, models: tuple[str, ...], kind: str, **options: Any) -> Row:
        if options["merge_method"].startswith(("dare", "della")):
            options["seed"] = seed
        return Row(name, kind, _inside(folder, f"merged {name}"), models, options)

    # An average divides the task vector of each expert by the number of experts. With this scale, each is multiplied by one
    # half instead, the best of 1/6, 1/3 and 1/2 on other seeds. Methods that elect signs divide by the number of experts
    # that agree, and need no scale.
    half = len(experts) / 2
    merges = [
        merged("linear", every, "merged", merge_method="linear"),
        merged("task arithmetic", every, "merged", merge_method="linear", scale=half),
        merged("ties", every, "merged", merge_method="ties", reserve_p=0.5, rescale=False),
        merged("dare_linear", every, "merged", merge_method="dare_linear", reserve_p=0.5, scale=half),
        merged("dare_ties", every, "merged", merge_method="dare_ties", reserve_p=0.7),
        merged("della", every, "merged", merge_method="della", reserve_p=0.7),
        merged("della_linear", every, "merged", merge_method="della_linear", reserve_p=0.5, scale=half),
        merged("slerp", two, "merged", merge_method="slerp", slerp_alpha=0.5),
    ]
    # A merge takes two models; a weight of 0 leaves the second out.
    alone: dict[str, Any] = {"merge_method": "dare_linear", "weight_list": [1.0, 0.0], "reserve_p": 0.1}
    minus: dict[str, Any] = {"merge_method": "linear", "weight_list": [-1.0, 0.0], "normalize": False}
    experiments = [
        merged(f"10% of {others[0]}", two, "experiment", **alone),
        merged("10%, not rescaled", two, "experiment", **alone, rescale=False),
        merged(f"base minus {others[0]}", two, "experiment", **minus),
    ]
    return [base, *experts, *merges, *experiments]


def _inside(folder: str, name: str) -> str:
    return os.path.join(folder, re.sub(r"[^a-z0-9_]+", "-", name))
