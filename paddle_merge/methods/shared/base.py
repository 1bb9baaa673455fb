"""Base classes of sparsifiers and mergers, and what a method sees of a tensor."""

from __future__ import annotations

import dataclasses
import functools
import operator
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar, Protocol

from ...backends.backend import Backend
from ...backends.budget import MemoryBudget
from ...backends.formula import formula
from ...backends.masks import Key


def total(rows: Iterable[Any]) -> Any:
    """Return the sum of at least one row, added in the models' order: the same on every device and for any block size."""
    return functools.reduce(operator.add, rows)


class Tensor(Protocol):
    """What a method sees of the tensor being merged while it measures.

    x[k] is model k's task vector (its weights, if there is no base model), flattened, in compute dtype.

    size: how many elements it has. models: how many models are merged.
    transposed: whether it is a matrix stored [in, out], as Paddle stores a Linear layer's weight; every other tensor, and
        torch's weights, are [out, in].
    narrow: whether all sources are stored in less than 64 bits; magnitudes are then compared as float32, else as float64.
    """

    name: str
    shape: tuple[int, ...]
    size: int
    models: int
    transposed: bool
    narrow: bool

    def mask_key(self, model: int) -> Key:
        """Return the key of a model's random masks of this tensor."""

    def deltas(self) -> Iterator[tuple[int, Any]]:
        """Yield (start, x) block by block, in element order: x is a row per model. Reads the tensor once."""

    def sparsified(self) -> Iterator[tuple[int, Any]]:
        """Yield the same blocks after the sparsifier."""

    def sample(self, count: int) -> Any:
        """Return about `count` elements of each model as a NumPy array (models, clusters, width): clusters of neighbouring
        elements, spread evenly over the tensor; the same ones every time."""


class Part:
    """What sparsifiers and mergers have in common. Instances are frozen dataclasses of the method's parameters.

    The defaults are those of a part that measures nothing.
    """

    @property
    def name(self) -> str:
        """The part's name in merge_lock.json."""
        return type(self).__name__.lower()

    @property
    def measures(self) -> bool:
        """Whether `prepare` reads the tensor.

        Such a tensor can't be cut into pieces for several workers, but several threads of one can merge it
        (run/large_tensor.py).
        """
        return False

    def parameters(self) -> dict[str, Any]:
        """Return the parameters by name, as merge_lock.json and the model card show them."""
        return dataclasses.asdict(self)  # type: ignore[call-overload, no-any-return]

    def memory(self, models: int, size: int, itemsize: int, budget: MemoryBudget) -> int:
        """Return how many bytes `prepare` takes at most, beside the blocks, for a tensor of `size` elements.

        itemsize: bytes of an element in compute dtype. budget: the worker's.
        """
        return 0

    def row_memory(self, models: int, shape: tuple[int, ...], transposed: bool, itemsize: int) -> int:
        """Return the bytes beside those of `memory` that depend on the shape: what is held of every row or column."""
        return 0


class Sparsifier(Part, ABC):
    """Decides which elements of each task vector are kept, and what they are multiplied by."""

    @property
    def random(self) -> bool:
        """Whether the seed matters."""
        return False

    @abstractmethod
    def prepare(self, tensor: Tensor, backend: Backend) -> Sequence[Any]:
        """Measure the tensor. Returns, for each model, what `apply` needs to know of it."""

    @abstractmethod
    def of_models(self, models: Sequence[int]) -> Sparsifier:
        """Return what sparsifies some of the models, in this order, each as often as it is named: with their own values of
        parameters that each model has."""

    @abstractmethod
    def apply(self, x: Any, start: int, state: Any, backend: Backend) -> Any:
        """Return one model's block x (n,), which begins at element `start`, sparsified. May reuse x's memory.

        state: what `prepare` returned for this model.
        """


class Merger(Part, ABC):
    """Makes one task vector of several.

    whole_matrices: whether `prepare` computes with whole matrices, which may take much longer than reading them.
    """

    whole_matrices: ClassVar[bool] = False

    def prepare(self, tensor: Tensor, backend: Backend) -> Any:
        """Measure the tensor. Returns what `apply` needs to know of it."""
        return None

    @abstractmethod
    def apply(self, x: Any, start: int, state: Any, backend: Backend) -> Any:
        """Return the merged block (n,) of x, a row per model, which begins at element `start`. May reuse x's memory.

        state: what `prepare` returned.
        """

    def effective_weights(self, models: int) -> Sequence[float]:
        """Return how much each model counts, for the plan and the model card."""
        return [1.0] * models


@formula(kernel="mergers.linear")
def linear(xp: Any, x: Any, weights: Any) -> Any:
    """Return sum_k w_k x_k, (n,). x: a row (n,) per model; weights: (models,)."""
    return total(weight * row for weight, row in zip(weights, x, strict=True))
