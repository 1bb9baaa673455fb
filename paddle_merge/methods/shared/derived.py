"""A number for each element of a tensor, made of what it is in all models: as a tensor that selection.py can look into."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from .base import Tensor


class Derived:
    """A Tensor of one model. block: of the first element's index and rows of x, in the backend's arrays, gives the row
    (n,). sampled: the same for a sample, in NumPy."""

    models = 1

    def __init__(self, tensor: Tensor, block: Callable[[int, Any], Any], sampled: Callable[[Any], Any]):
        self.name, self.shape, self.size = tensor.name, tensor.shape, tensor.size
        self.seed, self.narrow, self.transposed = tensor.seed, tensor.narrow, tensor.transposed
        self._tensor, self._block, self._sampled = tensor, block, sampled

    def deltas(self) -> Iterator[tuple[int, Any]]:
        for start, x in self._tensor.deltas():
            yield start, [self._block(start, x)]

    sparsified = deltas

    def sample(self, count: int) -> Any:
        return self._sampled(self._tensor.sample(count))[None]
