"""Define what a search sends to those who score candidates, and what they answer."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any

from ..records import record
from .contract import Scores
from .gene import Values
from .spec import Data, Evaluation


@record(frozen=True)
class Setup:
    """What all evaluations of a search have in common.

    where, text: the search file, from which candidates are made; text "": there are only checkpoints and recipes. folder:
    in which relative paths of commands and modules are looked up. memory: bytes of inputs that one process may keep. phase,
    fixed: which part of the file is searched, as of spaces.space_of. config_from: the folder with config.json where a
    recipe's inputs have none; "" if they have it.
    """

    evaluation: Evaluation
    data: Data
    where: str = ""
    text: str = ""
    folder: str = "."
    tensor_type: str = "np"
    device: str = "cpu"
    memory: int = 0
    phase: str = ""
    fixed: Values = ()
    config_from: str = ""


@record(frozen=True)
class Job:
    """One evaluation.

    number: identifies it among those that run. title: for people. values: of a candidate; None: `recipe`, YAML text, or
    `path`, a checkpoint, says what is scored. samples: as of an evaluator.
    """

    number: int
    title: str
    values: Values | None = None
    recipe: str = ""
    path: str = ""
    split: str = "search"
    seed: int = 0
    samples: tuple[int, ...] | None = None


@record(frozen=True)
class Result:
    """What became of a Job. error: why there are no scores; "" if there are."""

    number: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    samples: Mapping[str, Sequence[float]] = field(default_factory=dict)
    seconds: float = 0.0
    cost: Mapping[str, float] = field(default_factory=dict)
    error: str = ""

    @classmethod
    def of(cls, number: int, scores: Scores, seconds: float, wanted: Sequence[str]) -> Result:
        """Return the result of scores; one without scores if a wanted metric is missing, or is no finite number."""
        missing = [name for name in wanted if name not in scores.metrics]
        if missing:
            given = ", ".join(scores.metrics) or "nothing"
            return cls(number, seconds=seconds, error=f"the evaluator gave no {missing[0]!r}, but {given}")
        wrong = [name for name in wanted if not _is_finite(scores.metrics[name])]
        if wrong:
            value: Any = scores.metrics[wrong[0]]
            more = "" if isinstance(value, numbers.Real) else ", which is no number"
            return cls(number, seconds=seconds, error=f"{wrong[0]} is {value!r}{more}")
        metrics = {plain(name): float(value) for name, value in scores.metrics.items() if _is_finite(value)}
        samples = {
            plain(name): [float(value) for value in values]
            for name, values in scores.samples.items()
            if all(map(_is_finite, values))  # others have no standard error, and JSON has no NaN
        }
        cost = {plain(name): float(value) for name, value in scores.cost.items() if _is_finite(value)}
        return cls(number, metrics, samples, seconds, cost)


def plain(text: Any) -> str:
    """Return text that can be written as UTF-8: halves of characters, as in names of files and in JSON, are escaped."""
    return str(text).encode("utf-8", "backslashreplace").decode()


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except TypeError:
        return False
