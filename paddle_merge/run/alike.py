"""Sparsify small tensors of one shape together: they are presented to the sparsifier as one tensor of many models.

What a sparsifier does with a model's tensor depends on its elements, its shape, its name and the model's parameters alone,
unless it is stored in 64 bits (methods/trim.py). So a row for each model and tensor is measured as a row for each model is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from ..backends.backend import Backend
from ..backends.masks import Key, mask_key
from ..methods.shared.base import Sparsifier, Tensor
from ..records import record


@record(frozen=True)
class Alike:
    """What tensors of one shape have in common, and what masks of each are drawn from: as in TensorPlan.

    names: the tensors' (TensorPlan.masked_as).
    """

    names: Sequence[str]
    shape: tuple[int, ...]
    transposed: bool = False
    seed: int = 0


class Rows:
    """Tensors of one shape, as sparsifiers see them (methods.shared.base.Tensor): each of them in each model is a "model".

    rows (models * tensors, size): the task vectors, all tensors of the first model, then those of the next.
    """

    narrow = True

    def __init__(self, alike: Alike, rows: np.ndarray):
        self.name, self.shape, self.transposed = alike.names[0], alike.shape, alike.transposed
        self.models, self.size = rows.shape
        self.rows, self._alike = rows, alike

    @cached_property
    def _keys(self) -> list[Key]:
        names, seed = self._alike.names, self._alike.seed
        return [mask_key(seed, model, name) for model in range(self.models // len(names)) for name in names]

    def mask_key(self, model: int) -> Key:
        return self._keys[model]

    def deltas(self) -> Iterator[tuple[int, np.ndarray]]:
        yield 0, self.rows.copy()

    sparsified = deltas

    def sample(self, count: int) -> Any:
        return self.rows[:, None, :].copy()


@record(frozen=True)
class SparsifiedApart(Sparsifier):
    """Sparsifies tensors that lie one behind the other in one tensor, each as if it were alone, where formulas work in place
    (Backend.in_place).

    sparsifier: of each.
    """

    sparsifier: Sparsifier
    alike: Alike

    def prepare(self, tensor: Tensor, backend: Backend) -> Sequence[Sequence[Any]]:
        """Measure the tensors, all of whose elements are one block. Returns, for each model, the state of each tensor."""
        count = len(self.alike.names)
        ((_, x),) = tensor.deltas()
        each = self.sparsifier.of_models([model for model in range(tensor.models) for _ in range(count)])
        states = each.prepare(Rows(self.alike, x.reshape(tensor.models * count, -1)), backend)
        return [states[first : first + count] for first in range(0, len(states), count)]

    def of_models(self, models: Sequence[int]) -> SparsifiedApart:
        return SparsifiedApart(self.sparsifier.of_models(models), self.alike)

    def apply(self, x: Any, start: int, state: Sequence[Any], backend: Backend) -> Any:
        for row, one in zip(x.reshape(len(state), -1), state, strict=True):
            self.sparsifier.apply(row, 0, one, backend)
        return x
