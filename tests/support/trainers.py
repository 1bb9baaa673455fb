"""Drive callbacks of a Trainer as the Trainers of PaddleNLP and PaddleFormers do, without either library.

After step s every weight of the model is s, so averages can be worked out by hand.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from paddle_merge.backends.engine import import_paddle

paddle = import_paddle()
SHAPES = {
    "llama.embed_tokens.weight": (8, 4),
    "llama.layers.0.mlp.up_proj.weight": (4, 6),
    "llama.layers.0.mlp.down_proj.weight": (6, 4),
    "llama.norm.weight": (4,),
    "lm_head.weight": (4, 8),
}
CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4,
    "intermediate_size": 6,
    "num_attention_heads": 1,
    "vocab_size": 8,
    "tie_word_embeddings": False,
}


class KilledError(Exception):
    """Ends a training as a crash does."""


class Config:
    architectures = None

    def save_pretrained(self, folder: str) -> None:
        Path(folder, "config.json").write_text(json.dumps({**CONFIG, "architectures": self.architectures}))


class Model:
    """A model whose weights all have one value."""

    def __init__(self, dtype: str = "float32"):
        self.config = Config()
        self._state = {name: paddle.zeros(list(shape), dtype) for name, shape in SHAPES.items()}

    def state_dict(self) -> dict[str, Any]:
        return self._state

    def fill(self, value: float) -> None:
        for tensor in self._state.values():
            tensor.fill_(value)


class Arguments(SimpleNamespace):
    """TrainingArguments, as far as callbacks look at them."""

    __module__ = "paddlenlp.trainer"  # callbacks tell the libraries apart by this


def arguments(folder: Path, **changes: Any) -> Arguments:
    """Return the arguments of a training that saves every second step. changes: further ones, or other values."""
    found = {"output_dir": str(folder), "save_strategy": "steps", "save_steps": 2, "world_size": 1, "local_rank": -1}
    return Arguments(**{**found, **changes})


class Run:
    """A training in a folder."""

    def __init__(self, folder: Path, limit: int = 1, dtype: str = "float32", rank: int = 0, **changes: Any):
        self.args, self.limit, self.model = arguments(folder, **changes), limit, Model(dtype)
        self.state = SimpleNamespace(global_step=0, max_steps=0, is_world_process_zero=rank == 0, best_model_checkpoint=None)
        self.offset = 0.0  # of the weights with which it begins
        self.shift = 0.0  # of the weights after every step
        self.late: list[int] = []  # steps whose files zero-cost checkpoints haven't written yet

    def train(self, callbacks: Sequence[Any], steps: int = 8, start: int = 0, kill: int | None = None) -> None:
        """Train up to a step. start: the step of the checkpoint to go on from. kill: the step after which it crashes."""
        self.state = SimpleNamespace(**vars(self.state))  # each training has one of its own
        self.state.global_step, self.state.max_steps = start, steps
        self.model.fill(start + self.offset)
        with contextlib.suppress(KilledError):
            self._call(callbacks, "on_train_begin")
            for step in range(start + 1, steps + 1):
                self._call(callbacks, "on_step_begin")
                self.state.global_step = step
                self.model.fill(step + self.shift)
                self._call(callbacks, "on_step_end")
                if step == kill:
                    raise KilledError
                if step % self.args.save_steps == 0:
                    self._save(step)
                    self._call(callbacks, "on_save")
            for step in self.late:
                self.write(step)
            self._call(callbacks, "on_train_end")

    def _call(self, callbacks: Sequence[Any], event: str) -> None:
        for callback in callbacks:
            getattr(callback, event)(self.args, self.state, None, model=self.model, tokenizer=None, optimizer=None)

    def _save(self, step: int) -> None:
        if not self.state.is_world_process_zero:
            return
        if getattr(self.args, "enable_zero_cost_checkpoint", False):
            for earlier in self.late:
                self.write(earlier)
            self.late = [step]
            return
        self.write(step)
        found = sorted(Path(self.args.output_dir).glob("checkpoint-*"), key=lambda path: path.stat().st_mtime_ns)
        for old in found[: -self.limit]:
            shutil.rmtree(old)

    def write(self, step: int) -> None:
        """Write the checkpoint of a step, as PaddleNLP's Trainer does by default. Nothing removes zero-cost checkpoints."""
        folder = Path(self.args.output_dir, f"checkpoint-{step}")
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: paddle.full(list(shape), step + self.shift, "float32") for name, shape in SHAPES.items()}
        paddle.save(state, str(folder / "model_state.pdparams"))
        paddle.save({"moment": paddle.ones([2])}, str(folder / "optimizer.pdopt"))
        (folder / "config.json").write_text(json.dumps(CONFIG))
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
        (folder / "saved_signal_0").write_text("1")


def values(folder: Path, name: str = "model_state.pdparams") -> dict[str, np.ndarray]:
    """Return the weights in a file of paddle.save, by name."""
    loaded: Mapping[str, Any] = paddle.load(str(folder / name), return_numpy=True)
    return dict(loaded)


def value(folder: Path) -> float:
    """Return the one value that all weights of a written model have."""
    found = {float(number) for array in values(folder).values() for number in np.unique(array)}
    assert {name: array.shape for name, array in values(folder).items()} == SHAPES
    assert len(found) == 1, found
    return found.pop()
