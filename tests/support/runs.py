"""Write the folders that Trainers leave: checkpoints, their signals, and the files that say how training went."""

from __future__ import annotations

import json
import pickle
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from tests.checkpoints.formats import test_flex
from tests.support.checkpoints import write

State = Mapping[str, np.ndarray]


def run(folder: Path, models: Mapping[int, State], scores: Mapping[int, float] | None = None) -> Path:
    """Write checkpoint-N for each step, as transformers and PaddleNLP do, and return the folder of the run.

    scores: eval_loss by step.
    """
    history = [{"step": step, "loss": 1.0} for step in models]
    history += [{"step": step, "eval_loss": score, "eval_runtime": 2.0} for step, score in (scores or {}).items()]
    for step, tensors in models.items():
        checkpoint = write(folder / f"checkpoint-{step}", tensors)
        (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": step, "log_history": history}))
    return folder


def flex(folder: Path, tensors: State) -> None:
    """Write a distributed checkpoint of one rank."""
    boxes = {name: [(tuple(0 for _ in x.shape), x.shape)] for name, x in tensors.items()}
    test_flex.save(folder, {name: np.asarray(x, np.float32) for name, x in tensors.items()}, boxes)


def arguments(folder: Path, **values: Any) -> None:
    """Write training_args.bin as PaddleFormers does: an object of its own class, with attributes of other classes."""
    module = types.ModuleType("paddleformers.trainer.training_args")

    class TrainingArguments:
        pass

    class IntervalStrategy:
        def __init__(self, value: str):
            self.value = value

        def __reduce__(self) -> Any:
            return IntervalStrategy, (self.value,)

    its = TrainingArguments()
    its.__dict__.update({"output_dir": "out", "evaluation_strategy": IntervalStrategy("no"), **values})
    for kind in (TrainingArguments, IntervalStrategy):
        kind.__module__, kind.__qualname__ = module.__name__, kind.__name__
        setattr(module, kind.__name__, kind)
    packages = {name: types.ModuleType(name) for name in ("paddleformers", "paddleformers.trainer")}
    with mock.patch.dict(sys.modules, {module.__name__: module, **packages}):
        (folder / "training_args.bin").write_bytes(pickle.dumps(its, protocol=4))
