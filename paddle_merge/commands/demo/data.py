"""The tasks: scikit-learn's digits (real handwriting), each written into one of nine places of a page.

A task is a place. The base model knows the middle well and has seen a little of every other place; an expert has learned
one more place. Experts so change partly different weights, as models fine-tuned for different jobs do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

SIDE = 8  # pixels of a digit's side
PAGE = 3 * SIDE  # and of a page's
# place -> its row and column on the page; the first is the base model's
PLACES = {
    "middle": (1, 1),
    "top left": (0, 0),
    "top right": (0, 2),
    "bottom left": (2, 0),
    "bottom right": (2, 2),
    "left": (1, 0),
    "right": (1, 2),
}
TEST = 450  # of 1797 digits


@dataclass(frozen=True)
class Digits:
    """Handwritten digits, images (n, 8, 8) from 0 to 1 and labels (n,), those for training apart from those for testing."""

    images: Any
    labels: Any
    test_images: Any
    test_labels: Any


def load(rng: np.random.Generator) -> Digits:
    """scikit-learn's digits, split at random."""
    images, labels = load_digits(return_X_y=True)
    order = rng.permutation(len(images))
    images = (images[order] / 16).astype(np.float32).reshape(-1, SIDE, SIDE)
    labels = labels[order].astype(np.int64)
    return Digits(images[TEST:], labels[TEST:], images[:TEST], labels[:TEST])


def write(images: Any, place: str) -> Any:
    """images (n, 8, 8) on empty pages: (n, 576)."""
    row, column = PLACES[place]
    pages = np.zeros((len(images), PAGE, PAGE), np.float32)
    pages[:, row * SIDE : (row + 1) * SIDE, column * SIDE : (column + 1) * SIDE] = images
    return pages.reshape(len(images), -1)


def for_base(digits: Digits, places: list[str], few: int, rng: np.random.Generator) -> tuple[Any, Any]:
    """What the base model learns from: every training digit in the first place, `few` in each other one.

    Returns pages (n, 576) and labels (n,).
    """
    first, *others = places
    chosen = {place: rng.choice(len(digits.images), few, replace=False) for place in others}
    pages = [write(digits.images, first), *(write(digits.images[some], place) for place, some in chosen.items())]
    return np.concatenate(pages), np.concatenate([digits.labels, *(digits.labels[some] for some in chosen.values())])
