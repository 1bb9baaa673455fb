"""The network that classifies digits, its training, and its checkpoints."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F  # noqa: N812
from paddle import nn
from safetensors.numpy import load_file, save_file

from .data import PAGE, Digits, write

NAME = "DigitReader"
WIDTH, BATCH = 512, 64


class DigitReader(nn.Layer):
    """A residual MLP with 0.8 M parameters: pages [n, 576] -> logits [n, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(PAGE * PAGE, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, WIDTH)
        self.down = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, pages: Any) -> Any:
        x = self.embed(pages)  # (n, 512)
        return self.head(x + self.down(F.relu(self.up(self.norm(x)))))


def new(seed: int) -> DigitReader:
    """Return an untrained network, on the CPU."""
    paddle.device.set_device("cpu")
    paddle.seed(seed)
    return DigitReader()


def train(model: DigitReader, pages: Any, labels: Any, epochs: int, learning_rate: float, rng: np.random.Generator) -> None:
    """Train with AdamW on pages [n, 576] and labels [n], in random batches."""
    optimizer = paddle.optimizer.AdamW(learning_rate, parameters=model.parameters())
    for _ in range(epochs):
        order = rng.permutation(len(pages))
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            loss = F.cross_entropy(model(paddle.to_tensor(pages[batch])), paddle.to_tensor(labels[batch]))
            loss.backward()
            optimizer.step()
            optimizer.clear_grad()


def accuracy(model: DigitReader, digits: Digits, places: list[str]) -> dict[str, float]:
    """Return place -> the accuracy of the model on the test digits there, from 0 to 1."""
    with paddle.no_grad():
        guesses = {place: model(paddle.to_tensor(write(digits.test_images, place))).numpy().argmax(1) for place in places}
    return {place: float((guess == digits.test_labels).mean()) for place, guess in guesses.items()}


def save(model: DigitReader, folder: str) -> None:
    """Write the model as a checkpoint folder, as a training script does."""
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
        json.dump({"architectures": [NAME], "dtype": "float32", "hidden_size": WIDTH}, file, indent=2)
    tensors = {name: np.ascontiguousarray(value.numpy()) for name, value in model.state_dict().items()}
    save_file(tensors, os.path.join(folder, "model.safetensors"), metadata={"format": "np"})


def load(model: DigitReader, folder: str) -> None:
    """Load the weights of a folder into the model. Raises ValueError if their names aren't those of the model."""
    tensors = load_file(os.path.join(folder, "model.safetensors"))
    missing, unexpected = model.set_state_dict({name: paddle.to_tensor(value) for name, value in tensors.items()})
    if missing or unexpected:
        raise ValueError(f"{folder}: missing {missing}, unexpected {unexpected}")


def is_ours(folder: str) -> bool:
    """Return whether the demo may write a checkpoint there: the folder is missing, empty, or from an earlier run."""
    if not os.path.lexists(folder) or (os.path.isdir(folder) and not os.listdir(folder)):
        return True
    try:
        with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
            return bool(json.load(file)["architectures"] == [NAME])
    except (OSError, ValueError, KeyError, TypeError):
        return False
