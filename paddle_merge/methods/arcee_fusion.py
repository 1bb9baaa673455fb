"""Arcee Fusion: take over from a model only its most important changes (Arcee AI; mergekit's arcee_fusion).

importance = |delta| * KL(softmax of the model's line || softmax of the base's), a line being a row of a matrix as torch
stores it, [out, in]: the weights of one output neuron; a column of Paddle's [in, out]; a whole vector. Elements whose
importance is at least median + 1.5 * (third quartile - first) of their tensor's are the model's, the others the base's.

mergekit takes the quantiles of a million elements that it draws anew for every merge; here they are exact: the elements
of rank floor(q (n - 1)), as there. And divergences are in float64: those of fine-tuned language models are so small that
float32, in which mergekit has them, rounds away some of their digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backends.backend import Backend
from ..backends.budget import MemoryBudget
from .shared import selection
from .shared.base import Tensor
from .shared.derived import Derived
from .shared.method import Method, ResolvedMethod
from .shared.rows import Rows, rows_of


def importance(xp: Any, x: Any, element: Any, divergence: Any, across: bool, width: int) -> Any:
    """x: rows of the base and the model; element: the places of their elements; divergence (rows,) -> alike."""
    line = xp.remainder(element, width) if across else xp.floor_divide(element, width)
    return xp.abs(x[1] - x[0]) * xp.take(divergence, line)


def block_importance(xp: Any, x: Any, start: int, *rows: Any) -> Any:
    """x: rows (n,), the elements from `start` on -> (n,)."""
    return importance(xp, x, xp.arange(start, start + len(x[0])), *rows)


def fusion(xp: Any, x: Any, threshold: Any, start: int, *rows: Any) -> Any:
    """The same with a threshold (1,): from it on the model's elements, else the base's (NaN stays visible)."""
    mask = (block_importance(xp, x, start, *rows).astype(threshold.dtype) >= threshold).astype(x[0].dtype)
    return x[0] + (x[1] - x[0]) * mask


@dataclass(frozen=True)
class ArceeFusion:
    """The first model is the base."""

    measures = True

    def problems(self, models: int) -> list[str]:
        return []

    def effective_weights(self, models: int) -> Sequence[float]:
        return [1.0] * models

    def memory(self, models: int, size: int, itemsize: int, budget: MemoryBudget) -> int:
        samples = 4 * selection.sampled(size) * 8  # their places and importance
        return selection.memory(3, size, itemsize, budget) + samples

    def row_memory(self, models: int, shape: tuple[int, ...], transposed: bool, itemsize: int) -> int:
        along = rows_of(shape, transposed)
        return (along.count if along else 1) * (6 * 8 + itemsize)

    def prepare(self, tensor: Tensor, backend: Backend) -> Any:
        along = rows_of(tensor.shape, tensor.transposed) or Rows(1, False, tensor.size)
        divergence = self._divergence(tensor, backend, along)
        on_device = backend.constant(divergence)

        def block(start: int, x: Any) -> Any:
            return backend.apply(block_importance, x, start, on_device, along.across, along.width)

        def sampled(x: Any) -> Any:
            clusters, width = x.shape[1:]
            first = np.arange(clusters)[:, None] * (tensor.size // clusters)
            return importance(np, x, first + np.arange(width), divergence, along.across, along.width)

        ranks = [(0, int(q * (tensor.size - 1))) for q in (0.25, 0.5, 0.75)]
        cuts = selection.select_ranks(Derived(tensor, block, sampled), backend, ranks)
        first, median, third = (cut.value for cut in cuts)
        threshold = backend.constant(np.array([median + 1.5 * (third - first)], first.dtype))
        return threshold, on_device, along.across, along.width

    @staticmethod
    def _divergence(tensor: Tensor, backend: Backend, along: Rows) -> np.ndarray:
        """(rows,), of the backend's dtype."""
        from ..backends.kernels.measures import add_divergence, add_exponentials  # and with it Numba

        peaks, sums = np.full((2, along.count), -np.inf), np.zeros((2, along.count))
        for start, x in tensor.deltas():
            for row, peak, its in zip((x[1], x[0]), peaks, sums, strict=True):
                add_exponentials(backend.fetch(row)(), start, along.across, along.width, peak, its)
        divergence = np.zeros(along.count)
        for start, x in tensor.deltas():
            base, model = (backend.fetch(row)() for row in x)
            add_divergence(model, base, start, along.across, along.width, peaks, sums, divergence)
        return np.maximum(divergence, 0.0).astype(backend.dtype)  # below 0 only by rounding

    def apply(self, x: Any, start: int, state: Any, backend: Backend) -> Any:
        threshold, *along = state
        return backend.apply(fusion, x, threshold, start, *along)


METHODS = (
    Method(
        "arcee_fusion",
        lambda: ResolvedMethod(None, ArceeFusion()),
        base="first",
        least=2,
        most=2,
        source="Arcee AI, Arcee Fusion",
    ),
)
