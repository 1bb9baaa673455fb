"""Score the demo's networks, for examples of `evaluate`, `evolve` and `sweep` (configs/search)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...search.contract import Candidate, Scores
from . import data


class Reading:
    """How well a network reads the demo's test digits.

    The samples are digits in places; one half of the test digits is the split "search", the other one "report". Metrics:
    accuracy, from 0 to 1; nll, the mean of the negative natural log-probability of the right digit, which is smoother; and
    the accuracy in each place, by its name.
    """

    def __init__(self, places: Sequence[str] = tuple(data.PLACES), seed: int = 0):
        """places: on the page, as in data.PLACES. seed: that of the demo, which says which digits were not trained on."""
        self.metrics = ("accuracy", "nll", *places)
        digits = data.load(np.random.default_rng(seed))
        halves = {"search": slice(None, data.TEST // 2), "report": slice(data.TEST // 2, None)}
        self._pages = {
            split: np.concatenate([data.write(digits.test_images[half], place) for place in places])
            for split, half in halves.items()
        }
        self._labels = {split: np.tile(digits.test_labels[half], len(places)) for split, half in halves.items()}
        self._places = {split: np.repeat(places, len(labels) // len(places)) for split, labels in self._labels.items()}

    def count(self, split: str) -> int:
        """Return the number of samples of a split."""
        return len(self._labels[split])

    def __call__(self, candidate: Candidate, split: str, seed: int, samples: Sequence[int] | None) -> Scores:
        chosen = slice(None) if samples is None else list(samples)
        pages, labels = self._pages[split][chosen], self._labels[split][chosen]
        logits = forward(candidate.state_dict(), pages)
        logits -= logits.max(axis=1, keepdims=True)
        losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(labels)), labels]
        right = (logits.argmax(axis=1) == labels).astype(float)
        values = {"accuracy": right.tolist(), "nll": losses.tolist()}
        metrics = {name: float(np.mean(per_sample)) for name, per_sample in values.items()}
        where = self._places[split][chosen]
        metrics |= {str(place): float(right[where == place].mean()) for place in np.unique(where)}
        return Scores(metrics, values)


def forward(weights: dict[str, np.ndarray], pages: np.ndarray) -> np.ndarray:
    """Return logits [n, 10] of pages [n, 576]: what network.DigitReader computes, by NumPy. Weights are [in, out]."""

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return x @ weights[f"{name}.weight"] + weights[f"{name}.bias"]  # type: ignore[no-any-return]

    x = linear("embed", pages)  # (n, 512)
    centred = x - x.mean(axis=1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5)
    inner = np.maximum(linear("up", normed * weights["norm.weight"] + weights["norm.bias"]), 0)
    return linear("head", x + linear("down", inner))
