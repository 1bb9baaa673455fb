"""Tiny language models: their texts, which every Python brings along, their training, and how they are measured.

A token is a character. The models are Llamas of three layers with 0.16 M parameters. Prose is the language reference that
`pydoc` shows; code is some modules of the standard library. Parts of both are held out, to measure on.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from importlib import import_module
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F  # noqa: N812
import tiny_llama
from claims.claim import Run
from tiny_llama import Weights

CODE = ("argparse", "calendar", "inspect", "optparse", "pickle", "tarfile", "typing")  # modules whose text is trained on
CHARACTERS = 96  # the line feed, then those of ASCII from the space to the tilde
WIDTH, HEADS, DEPTH, INNER = 64, 2, 3, 176
LENGTH = 64  # characters of a sequence
RATE = 4e-3
DECAY = 0.2  # the share of the run in which a learning rate that decays falls to 0


def encoded(text: str) -> Any:
    """Return the tokens of a text; what isn't ASCII becomes a question mark, and control characters spaces."""
    codes = np.frombuffer(text.encode("ascii", "replace"), np.uint8).astype(np.int64)
    return np.where(codes == ord("\n"), 0, np.clip(codes - 31, 1, CHARACTERS - 1))


def decoded(tokens: Any) -> str:
    """Return the text of tokens."""
    return bytes(np.where(tokens == 0, ord("\n"), tokens + 31).astype(np.uint8)).decode("ascii")


@functools.cache
def texts() -> dict[str, tuple[Any, Any]]:
    """Return prose and code, each as the tokens for training and those for measuring."""
    pages = [topics[name] for name in sorted(topics)]
    train = [page for number, page in enumerate(pages) if number % 10]
    modules = [inspect.getsource(import_module(name)) for name in CODE]
    pairs = {"prose": ("\n".join(train), "\n".join(pages[::10])), "code": ("\n".join(modules), inspect.getsource(difflib))}
    return {name: (encoded(one), encoded(other)) for name, (one, other) in pairs.items()}


def logits(weights: Weights, tokens: Any, cache: list[tuple[Any, Any]] | None = None) -> Any:
    """Return logits [n, length, CHARACTERS] of tokens [n, length], a tensor."""
    return tiny_llama.logits(weights, tokens, HEADS, cache)


class Training:
    """AdamW on random sequences of a text, which can go back to an earlier state."""

    def __init__(self, weights: dict[str, Any], text: Any, batch: int, generator: np.random.Generator) -> None:
        self.weights, self._text, self._batch, self._generator = weights, text, batch, generator
        clip = paddle.nn.ClipGradByGlobalNorm(1.0)
        self._optimizer = paddle.optimizer.AdamW(0.0, parameters=list(weights.values()), weight_decay=0.0, grad_clip=clip)

    def step(self, rate: float) -> None:
        """Train with one batch. rate: the learning rate."""
        self._optimizer.set_lr(float(rate))
        starts = self._generator.integers(len(self._text) - LENGTH, size=self._batch)
        tokens = paddle.to_tensor(self._text[starts[:, None] + np.arange(LENGTH + 1)])
        given = logits(self.weights, tokens[:, :-1]).reshape([-1, CHARACTERS])
        F.cross_entropy(given, tokens[:, 1:].reshape([-1])).backward()
        self._optimizer.step()
        self._optimizer.clear_grad()

    def state(self) -> tuple[Any, Any, Any]:
        """Return copies of the weights and of the states of the optimizer and the random generator."""
        moments = {name: value.clone() for name, value in self._optimizer.state_dict().items() if paddle.is_tensor(value)}
        weights = {name: value.detach().clone() for name, value in self.weights.items()}
        return weights, moments, self._generator.bit_generator.state

    def restore(self, state: tuple[Any, Any, Any]) -> None:
        """Go back to what `state` returned."""
        weights, moments, self._generator.bit_generator.state = state
        for name, value in weights.items():
            self.weights[name].set_value(value)
        self._optimizer.set_state_dict(moments)


def bits(run: Run, folder: Path, name: str) -> float:
    """Return the loss of a checkpoint on the held-out part of a text, in bits per character."""
    text = texts()[name][1]
    starts = np.linspace(0, len(text) - LENGTH - 1, run.effort.test).astype(int)
    tokens = paddle.to_tensor(text[starts[:, None] + np.arange(LENGTH + 1)])
    with paddle.no_grad():
        given = logits(tiny_llama.load(folder), tokens[:, :-1]).reshape([-1, CHARACTERS])
        return float(F.cross_entropy(given, tokens[:, 1:].reshape([-1]))) / float(np.log(2))


@functools.cache
def pretrained(run: Run) -> tuple[list[Path], Path]:
    """Train on prose; return the checkpoints of the second half of a run, and the last of the same run with a decay.

    In the first, the learning rate is constant after a warm-up. In the second it decays linearly to 0 in the last part of
    the steps (DECAY); both see the same sequences in the same order.
    """
    steps, every = run.effort.steps, run.effort.every
    decay = round(steps * DECAY)
    weights = tiny_llama.new(run.seed, CHARACTERS, WIDTH, DEPTH, INNER)
    training = Training(weights, texts()["prose"][0], run.effort.batch, np.random.default_rng([run.seed, 1]))
    found, before = [], None
    for step in range(1, steps + 1):
        training.step(RATE * min(1.0, step / (0.05 * steps)))
        if step == steps - decay:
            before = training.state()
        if step > steps // 2 and (steps - step) % every == 0:
            found.append(run.folder / f"checkpoint-{step}")
            tiny_llama.save(weights, found[-1], HEADS)
    training.restore(before)
    for step in range(decay):
        training.step(RATE * (1.0 - step / decay))
    tiny_llama.save(weights, run.folder / "decayed", HEADS)
    return found, run.folder / "decayed"


@functools.cache
def coder(run: Run) -> tuple[Path, Path]:
    """Return the model that was trained on prose, and the same after fine-tuning on code."""
    base, tuned = pretrained(run)[1], run.folder / "coder"
    weights, steps = tiny_llama.load(base), run.effort.tuning
    training = Training(weights, texts()["code"][0], run.effort.batch, np.random.default_rng([run.seed, 2]))
    for step in range(steps):
        training.step(0.25 * RATE * (1.0 - step / steps))
    tiny_llama.save(weights, tuned, HEADS)
    return base, tuned
