"""The tasks of the demo: scikit-learn's digits (real handwriting), each drawn in one of nine places of a page.

Each place is a task. The base model is trained on the middle and on a few examples of every other place; each expert is
fine-tuned on one other place. So experts change partly different weights, as models fine-tuned for different tasks do.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from ...records import record

SIDE = 8  # side of a digit in pixels
PAGE = 3 * SIDE  # side of a page in pixels
# Place -> its row and column on the page; the first is the base model's.
PLACES = {
    "middle": (1, 1),
    "top left": (0, 0),
    "top right": (0, 2),
    "bottom left": (2, 0),
    "bottom right": (2, 2),
    "left": (1, 0),
    "right": (1, 2),
}
TEST = 450  # number of test digits, of 1797


@record(frozen=True)
class Digits:
    """Handwritten digits for training and testing: images [n, 8, 8] float32 from 0 to 1, and labels [n] int64."""

    images: Any
    labels: Any
    test_images: Any
    test_labels: Any


def load(rng: np.random.Generator) -> Digits:
    """Return scikit-learn's digits, split at random."""
    images, labels = load_digits(return_X_y=True)
    order = rng.permutation(len(images))
    images = (images[order] / 16).astype(np.float32).reshape(-1, SIDE, SIDE)
    labels = labels[order].astype(np.int64)
    return Digits(images[TEST:], labels[TEST:], images[:TEST], labels[:TEST])


def write(images: Any, place: str) -> Any:
    """Return pages [n, 576] that are empty but for images [n, 8, 8] in one place."""
    row, column = PLACES[place]
    pages = np.zeros((len(images), PAGE, PAGE), np.float32)
    pages[:, row * SIDE : (row + 1) * SIDE, column * SIDE : (column + 1) * SIDE] = images
    return pages.reshape(len(images), -1)


def for_base(digits: Digits, places: list[str], few: int, rng: np.random.Generator) -> tuple[Any, Any]:
    """Return the training data of the base model: pages [n, 576] and labels [n].

    These are all training digits in the first place, and `few` of them in each other place.
    """
    first, *others = places
    chosen = {place: rng.choice(len(digits.images), few, replace=False) for place in others}
    pages = [write(digits.images, first), *(write(digits.images[some], place) for place, some in chosen.items())]
    return np.concatenate(pages), np.concatenate([digits.labels, *(digits.labels[some] for some in chosen.values())])
