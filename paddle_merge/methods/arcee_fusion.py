"""Arcee Fusion: take over from a model only its most important changes (Arcee AI; mergekit's arcee_fusion).

importance = |delta| * KL(softmax of the model's row || softmax of the base's row). A row is that of torch's matrix [out,
in], the weights of one output neuron, which is a column of Paddle's [in, out]; a vector is one row. An element whose
importance is at least median + 1.5 * (third quartile - first quartile) of its tensor's is taken from the model, any other
from the base.

mergekit takes the quantiles of a million elements that it draws anew for every merge. Here they are exact: the elements of
rank floor(q (n - 1)), as there. Divergences are computed in float64: those of fine-tuned language models are so small that
float32, which mergekit uses, rounds away some of their digits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backends.backend import Backend
from ..backends.budget import MemoryBudget
from ..backends.formula import formula
from ..records import record
from .shared import selection
from .shared.base import Merger, Tensor
from .shared.derived import Derived
from .shared.method import Method, ResolvedMethod
from .shared.rows import Rows, rows_of


def importance(xp: Any, x: Any, element: Any, divergence: Any, across: bool, width: int) -> Any:
    """Return the importance of each element, of x's shape. x: the base's elements and the model's. element: their indices in
    the tensor. divergence: (rows,). across, width: how rows lie in the tensor (rows.Rows)."""
    row = xp.remainder(element, width) if across else xp.floor_divide(element, width)
    return xp.abs(x[1] - x[0]) * xp.take(divergence, row)


@formula(kernel="mergers.block_importance")
def block_importance(xp: Any, x: Any, start: int, *rows: Any) -> Any:
    """Return the importance of a block, (n,). x: the elements from `start` on. rows: as in `importance`."""
    return importance(xp, x, xp.arange(start, start + len(x[0])), *rows)


@formula(kernel="mergers.fusion")
def fusion(xp: Any, x: Any, threshold: Any, start: int, *rows: Any) -> Any:
    """Return the model's elements where their importance is at least the threshold (1,), else the base's, (n,); a NaN stays
    NaN."""
    mask = (block_importance(xp, x, start, *rows).astype(threshold.dtype) >= threshold).astype(x[0].dtype)
    return x[0] + (x[1] - x[0]) * mask


@record(frozen=True)
class ArceeFusion(Merger):
    """Takes over the most important changes. The first model is the base."""

    @property
    def measures(self) -> bool:
        return True

    def memory(self, models: int, size: int, itemsize: int, budget: MemoryBudget) -> int:
        samples = 4 * selection.sampled(size) * 8  # their indices and importance
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
        """Return each row's divergence, (rows,), in compute dtype."""
        from ..backends.kernels.measures import add_divergence, add_exponentials  # planning does without

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
        about="only the most important changes of another model",
        about_cn="只采用另一个模型中最重要的改动",
        source="Arcee AI, Arcee Fusion",
        base="first",
        least=2,
        most=2,
        mergekit=True,
        place=20,
    ),
)
