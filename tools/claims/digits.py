"""Networks that read digits, and experts fine-tuned from them: those of compare_methods.py, with tasks of our own."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from claims.claim import Run
from compare_methods import Reader, Task, accuracies, inverted, trained

from paddle_merge.commands.demo import data, network

PLACES = [(row, column) for row in (1, 0, 2) for column in (1, 0, 2)]  # the middle first


@dataclass(frozen=True)
class Placed(Task):
    """Digits at any of the nine places of a page."""

    at: tuple[int, int] = (1, 1)

    def of(self, images: Any, labels: Any) -> tuple[Any, Any]:
        """Return the images, (n, 576), and the labels, (n,)."""
        pages = np.zeros((len(images), 3, data.SIDE, 3, data.SIDE), np.float32)
        pages[:, self.at[0], :, self.at[1]] = images
        return pages.reshape(len(images), -1), labels


# The first task of each is what the base is trained on; an expert is fine-tuned on each of the others.
TASKS = {
    # Experts change the same weights.
    "changed": [
        Task("upright"),
        Task("turned", lambda images: np.rot90(images, axes=(1, 2))),
        Task("inverted", inverted),
        Task("mirrored", lambda images: images[:, :, ::-1]),
    ],
    # Experts change partly different weights: those of the embedding that read another place of the page.
    "places": [Placed(f"{row} {column}", at=(row, column)) for row, column in PLACES],
}


@dataclass(frozen=True)
class Experts:
    """A base network and its experts, in a folder. splits: images and labels of "held", to choose by, and of "test"."""

    folder: Path
    model: Reader
    tasks: list[Task]
    splits: dict[str, tuple[Any, Any]]

    @property
    def base(self) -> Path:
        return self.folder / "base"

    @property
    def all(self) -> list[Path]:
        """Return the folders of the experts."""
        return [self.folder / f"expert{number}" for number in range(len(self.tasks) - 1)]

    def accuracies(self, folder: Path, split: str = "test") -> list[float]:
        """Return the accuracy of a checkpoint on each task, in per cent."""
        network.load(self.model, str(folder))
        return [100 * one for one in accuracies(self.model, self.tasks, *self.splits[split])]


@functools.cache
def experts(run: Run, tasks: str) -> Experts:
    """Train a base and its experts for the tasks of this name."""
    folder = run.folder / tasks
    folder.mkdir(parents=True)
    model, (held, test) = trained(folder, TASKS[tasks], run.seed, run.effort.epochs)
    return Experts(folder, model, TASKS[tasks], {"held": held, "test": test})
