"""Define what an evaluator gets and gives.

An evaluator is a callable `evaluate(candidate, split, seed, samples)` that returns Scores:

    candidate   a model to score (Candidate): its tensors in memory, its config, a folder on demand
    split       "search" or "report"; Data says which file that is
    seed        for whatever the evaluator draws at random; the same for all candidates that are compared
    samples     the places of the samples to score, in ascending order; None: all

It may raise any error: the candidate then counts as failed, with the error as the reason.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from typing import Any, Protocol

import numpy as np

from ..records import record

DIRECTIONS = ("maximize", "minimize")


@record(frozen=True)
class Scores:
    """What an evaluation measured.

    metrics: metric -> value. samples: metric -> a value per sample that was scored, in the order of the samples, for
    metrics that are the mean of such values; empty if the evaluator doesn't tell. seconds: that it took. cost: what it took
    otherwise, by name, such as {"tokens": 3000}.
    """

    metrics: Mapping[str, float]
    samples: Mapping[str, Sequence[float]] = field(default_factory=dict)
    seconds: float = 0.0
    cost: Mapping[str, float] = field(default_factory=dict)

    def error(self, metric: str) -> float | None:
        """Return the standard error of a metric's mean over samples; None if it is unknown."""
        values = np.asarray(self.samples.get(metric, ()), np.float64)
        return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None


class EvaluationError(Exception):
    """Say why a candidate could not be scored, in one sentence."""


def place_of(error: BaseException, folder: str) -> str:
    """Return the last line of a file in a folder, the evaluator's, that an error came through; "" if there is none."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if os.path.dirname(frame.filename) == folder:
            return f", at {os.path.basename(frame.filename)}:{frame.lineno}"
    return ""


class Candidate(Protocol):
    """A model to score. title: for people: the path of a checkpoint, or a candidate's number.

    What it gives is valid until the evaluation returns.
    """

    title: str

    @property
    def config(self) -> Mapping[str, Any]:
        """The content of its config.json; empty if there is none."""

    def state_dict(self, tensor_type: str = "np") -> dict[str, Any]:
        """Return its tensors by name, in new memory: NumPy arrays ("np") or Paddle tensors on Paddle's device ("pd").

        Floats that NumPy lacks (bfloat16, 8-bit) come as float32, which is exact.
        """

    def load_into(self, model: Any) -> None:
        """Copy its tensors into a Paddle model of the same names and shapes, in place.

        Raises EvaluationError if names or shapes differ.
        """

    def folder(self) -> str:
        """Return the path of a checkpoint folder that holds it: weights, config and tokenizer."""


class Evaluator(Protocol):
    """Scores candidates. metrics: the names of those it gives; None: they show when it is called."""

    metrics: tuple[str, ...] | None

    def __call__(self, candidate: Candidate, split: str, seed: int, samples: Sequence[int] | None) -> Scores: ...

    def count(self, split: str) -> int | None:
        """Return how many samples a split has; None if that is unknown, and samples can't be chosen."""


PREFIX = "paddle_merge_"  # of the names of temporary folders
_scratch: str | None = None


def keep_scratch_in(folder: str) -> None:
    """Make this process's scratch folders in a folder that others delete, should it be killed."""
    global _scratch
    _scratch = folder


@contextlib.contextmanager
def scratch_folder() -> Iterator[str]:
    """Give a new folder that is deleted afterwards."""
    path = tempfile.mkdtemp(prefix=PREFIX, dir=_scratch)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def as_paddle(values: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return arrays as Paddle tensors."""
    from ..backends.engine import import_paddle

    paddle = import_paddle()
    return {name: paddle.to_tensor(value) for name, value in values.items()}


def copy_into(model: Any, values: Mapping[str, np.ndarray]) -> None:
    """Copy arrays into the tensors of a Paddle model, in place, each converted to its tensor's dtype.

    Raises EvaluationError if names or shapes differ.
    """
    held = model.state_dict()
    missing = [name for name in held if name not in values]
    if missing:
        raise EvaluationError(
            f"the merged model has no {missing[0]!r}"
            + (f" (and {len(missing) - 1} more)" if missing[1:] else "")
            + ", which the model that it is loaded into has"
        )
    for name, tensor in held.items():
        value = values[name]
        if tuple(tensor.shape) != value.shape:
            raise EvaluationError(f"tensor {name!r} is {list(value.shape)}, and {list(tensor.shape)} in the model")
        tensor.set_value(value.astype(np.float32) if str(tensor.dtype).endswith("bfloat16") else value)
