"""Draw which elements of a tensor are kept, by the rank of their magnitude within their row (methods/della.py).

Whole rows at a time are gathered from blocks and sorted; what is kept is stored as one bit for each element.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ...backends.backend import Backend
from ...backends.kernels import row_ranks
from ...backends.masks import Key
from .base import Tensor
from .rows import SORTED

Axes = tuple[int, int, int]


def keep_by_rank(tensor: Tensor, backend: Backend, axes: Axes, draws: Mapping[int, tuple[Key, Any]]) -> dict[int, Any]:
    """Return, for each model in draws, a bit for each element, packed as np.packbits does: whether to keep it.

    An element is kept if its hash is at most the limit of its rank by magnitude; equal magnitudes rank by index.

    axes: as rows.axes_of_rows. draws: model -> (mask key, limits (length,) uint32 by ascending rank).
    """
    bits = {model: np.zeros(-(-tensor.size // 8), np.uint8) for model in draws}
    for panels, elements, step in _panels(tensor, backend, axes, list(draws)):
        for (model, (key, limits)), panel in zip(draws.items(), panels, strict=True):
            for some, order in _ordered(panel, tensor.narrow):
                row_ranks.keep_ranked(order, elements[some], step, *map(np.uint32, key), limits, bits[model])
    return bits


def _panels(tensor: Tensor, backend: Backend, axes: Axes, models: Sequence[int]) -> Iterator[tuple[Any, Any, int]]:
    """Yield whole rows, as many at a time as the memory budget allows: (panels, elements, step).

    panels: (models, outer, length, width), |x| of `outer` times `width` rows. elements: (outer * width,) int64, the index of
    each row's first element. step: from one element of a row to the next.

    Reads the tensor once, unless the rows that are interleaved (all of a transposed matrix) exceed the budget.
    """
    outer, length, inner = axes
    budget = max(1, backend.budget.selecting // (backend.dtype.itemsize * max(1, len(models) * length)))  # rows
    width = min(inner, budget)
    together = min(outer, max(1, budget // inner))  # of the outer axes
    for first in range(0, inner if models else 0, width):
        columns = min(width, inner - first)
        panels = np.empty((len(models), together * length, columns), backend.dtype)
        done = 0  # of the outer axes
        for start, x in tensor.deltas():
            rows = [backend.fetch(x[model])() for model in models]
            at, stop = start, start + len(rows[0])
            while at < stop:
                count = min(together, outer - done)
                end = (done + count) * length * inner
                for row, panel in zip(rows, panels, strict=True):
                    some = row[at - start : end - start]
                    if inner == 1:  # the rows are contiguous already
                        np.abs(some, out=panel.reshape(-1)[at - done * length :][: some.size])
                    else:
                        row_ranks.gather(some, at, inner, first, panel, done * length)
                if end <= stop:
                    origins = (done + np.arange(count)[:, None]) * (length * inner) + first + np.arange(columns)
                    yield panels[:, : count * length].reshape(-1, count, length, columns), origins.reshape(-1), inner
                    done += count
                at = min(end, stop)


def _ordered(panel: Any, narrow: bool) -> Iterator[tuple[slice, Any]]:
    """Yield some of the panel's rows at a time: which, and (rows, length) uint32, the indices of their elements by ascending
    magnitude, equals by index. panel: (outer, length, width) magnitudes."""
    outer, length, width = panel.shape
    digit = max(4, min(11, length.bit_length()))  # as many values as a row has elements, or counting them takes longest
    count = max(1, SORTED // length)
    for k in range(0, outer * width, count):
        numbers = np.arange(k, min(k + count, outer * width))
        as_they_lie = panel.reshape(outer, length)[k : k + count] if width == 1 else None
        magnitudes = panel[numbers // width, :, numbers % width] if as_they_lie is None else as_they_lie
        if narrow:
            order = np.empty(magnitudes.shape, np.uint32)
            row_ranks.order_rows(magnitudes, digit, order)
        else:
            order = np.argsort(magnitudes, axis=1, kind="stable").astype(np.uint32)
        yield slice(k, k + count), order
