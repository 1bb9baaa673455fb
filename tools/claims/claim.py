"""What a claim of a paper is: how it is measured, what the paper reports, and which statements its numbers decide."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paddle_merge import MergeConfig, merge


@dataclass(frozen=True)
class Effort:
    """How much is trained and measured.

    epochs: of the base network that reads digits, and of each expert. steps: of the language model's run. every: steps
    between checkpoints in the second half of that run. batch: sequences of a step. tuning: steps of fine-tuning on code.
    test: held-out sequences of each text that are measured on. pairs: preferences for DPO, 16 of which make a step. texts:
    samples that a reward is averaged over.
    """

    epochs: tuple[int, int] = (30, 10)
    steps: int = 1000
    every: int = 20
    batch: int = 8
    tuning: int = 80
    test: int = 96
    pairs: int = 960
    texts: int = 256


QUICK = Effort(epochs=(1, 1), steps=50, every=1, batch=1, tuning=2, test=2, pairs=32, texts=4)


@dataclass(frozen=True)
class Run:
    """One training of everything. folder: where its checkpoints are written."""

    folder: Path
    seed: int
    effort: Effort


@dataclass(frozen=True)
class Row:
    """A row of a claim's table. reported: the paper's number for what is most alike. decimals: of our numbers."""

    title: str
    reported: str = ""
    decimals: int = 1


@dataclass(frozen=True)
class Finding:
    """A statement of a paper, and whether our numbers agree, on the mean of the seeds by the margin that `ours` says."""

    statement: str
    ours: str
    agrees: bool


Numbers = Mapping[str, Sequence[float]]  # key of a number -> its value for each seed


@dataclass(frozen=True)
class Claim:
    """A claim of a paper.

    says: what the paper reports. did: what is trained here instead. rows: the table, by the keys of `measured`, which may
    return numbers that only `draw` uses. draw: draws the numbers on a matplotlib Figure.
    """

    title: str
    paper: str
    says: str
    did: str
    rows: Mapping[str, Row]
    measured: Callable[[Run], dict[str, float]]
    findings: Callable[[Numbers], list[Finding]]
    draw: Callable[[Any, Numbers], None]


def mean(values: Sequence[float]) -> float:
    """Return the mean as a Python float."""
    return float(np.mean(values))


def merged(out: Path, models: Sequence[Path], base: Path | None = None, **flags: Any) -> Path:
    """Merge checkpoints with the flags of a command line into the folder `out`, and return it."""
    paths: dict[str, Any] = {"model_path_list": [str(model) for model in models], "output_path": str(out)}
    if base is not None:
        paths["base_model_path"] = str(base)
    merge(MergeConfig(**paths, **flags, overwrite=True, n_process=1), progress=False)
    return out


def curve(axes: Any, xs: Sequence[float], numbers: Numbers, keys: Sequence[str], label: str, colour: str) -> None:
    """Draw the mean over the seeds of some numbers as a line, and each seed's as a pale one."""
    values = np.array([numbers[key] for key in keys])  # (points, seeds)
    axes.plot(xs, values, color=colour, linewidth=0.7, alpha=0.35)
    axes.plot(xs, values.mean(1), color=colour, label=label, marker="o", markersize=3.5)
