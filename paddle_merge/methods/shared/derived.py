"""Compute one number per element from all models, and present these numbers as a tensor that selection.py can search."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ...backends.masks import Key
from .base import Tensor


class Derived:
    """A Tensor of one model, computed from the models of another.

    block(start, x): the numbers (n,) of a block x that begins at element `start`, in the backend's arrays. sampled(x): the
    same for a sample (models, clusters, width), in NumPy.
    """

    models = 1

    def __init__(self, tensor: Tensor, block: Callable[[int, Any], Any], sampled: Callable[[Any], Any]):
        self.name, self.shape, self.size = tensor.name, tensor.shape, tensor.size
        self.narrow, self.transposed = tensor.narrow, tensor.transposed
        self._tensor, self._block, self._sampled = tensor, block, sampled

    def mask_key(self, model: int) -> Key:
        return self._tensor.mask_key(model)

    def deltas(self) -> Iterator[tuple[int, Any]]:
        for start, x in self._tensor.deltas():
            yield start, [self._block(start, x)]

    sparsified = deltas

    def sample(self, count: int) -> Any:
        return self._sampled(self._tensor.sample(count))[None]
