"""Base classes of sparsifiers and mergers, and what a method sees of a tensor."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

from ...backends.backend import Backend
from ...backends.budget import MemoryBudget
from ...backends.formula import formula


def total(rows: Iterable[Any]) -> Any:
    """The sum of at least one row, added in the models' order, so that it is the same on every device and for any block."""
    return functools.reduce(operator.add, rows)


class Tensor(Protocol):
    """What a method sees of the tensor being merged while it measures.

    x[k] is model k's task vector (its weights, if there is no base model), flattened, in compute dtype.
    """

    name: str
    shape: tuple[int, ...]
    size: int  # elements
    models: int
    seed: int
    transposed: bool  # a matrix [in, out], as Paddle has a layer's weight; torch's, and any other tensor, is [out, in]
    narrow: bool  # False for float64 storage; True: magnitudes are compared as float32

    def deltas(self) -> Iterator[tuple[int, Any]]:
        """(start, x) block by block in element order, a row of x per model. Reads the tensor once."""

    def sparsified(self) -> Iterator[tuple[int, Any]]:
        """The same after the sparsifier."""

    def sample(self, count: int) -> Any:
        """(models, clusters, width), a NumPy array: about `count` elements of each model, in clusters of neighbours spread
        evenly over the tensor; the same ones every time."""


class Sparsifier(Protocol):
    """Decides what of each task vector is kept. Instances are frozen dataclasses of the method's parameters."""

    random: bool  # whether the seed matters

    @property
    def measures(self) -> bool:
        """Whether `prepare` reads the tensor, so that it can't be cut into pieces for several workers."""

    def problems(self) -> list[str]:
        """What is wrong with the parameters: sentences that name the flag and the remedy."""

    def memory(self, models: int, size: int, itemsize: int, budget: MemoryBudget) -> int:
        """Bytes that `prepare` takes, at most, beside the blocks, for a tensor of `size` elements; itemsize: of compute
        dtype; room: the worker's."""

    def prepare(self, tensor: Tensor, backend: Backend) -> Sequence[Any]:
        """What `apply` needs to know of this tensor: one state per model."""

    def apply(self, x: Any, start: int, state: Any, backend: Backend) -> Any:
        """One model's block x (n,), beginning at element `start`, sparsified. May reuse x's memory."""


class Merger(Protocol):
    """Makes one task vector of several."""

    @property
    def measures(self) -> bool:
        """As Sparsifier.measures."""

    def problems(self, models: int) -> list[str]:
        """As Sparsifier.problems, for this many models."""

    def memory(self, models: int, size: int, itemsize: int, budget: MemoryBudget) -> int:
        """As Sparsifier.memory."""

    def prepare(self, tensor: Tensor, backend: Backend) -> Any:
        """What `apply` needs to know of this tensor."""

    def apply(self, x: Any, start: int, state: Any, backend: Backend) -> Any:
        """The merged block (n,) of x, a row per model, beginning at element `start`. May reuse x's memory."""

    def effective_weights(self, models: int) -> Sequence[float]:
        """What each model counts for, for the plan and the model card."""


@runtime_checkable
class ByRow(Protocol):
    """A part that knows something of every line of a tensor, so that what it takes depends on the shape."""

    def row_memory(self, models: int, shape: tuple[int, ...], transposed: bool, itemsize: int) -> int:
        """Bytes beside those of `memory`."""


@formula(kernel="mergers.linear")
def linear(xp: Any, x: Any, weights: Any) -> Any:
    """x: a row (n,) per model, weights (models,) -> (n,): sum_k w_k x_k."""
    return total(weight * row for weight, row in zip(weights, x, strict=True))
