"""The sparsifiers of PaddleNLP and of mergekit: one mechanism with two axes.

Which elements are kept:

    threshold, by magnitude                          trim.Threshold
    exact count, the largest                         trim.Largest
    exact count, between two ranks                   breadcrumbs.Breadcrumbs
    each with the same probability                   dare.Bernoulli
    with a probability by its rank in the tensor     della.ByTensorRank
    with a probability by its rank in the row        della.ByRowRank

What the kept elements are multiplied by: 1; 1 / the probability of keeping them; or what restores the tensor's L1 norm.

Which of these a tool's method takes, under which names and defaults, is in methods/paddlenlp.py and methods/mergekit.py.
"""

from __future__ import annotations

import dataclasses
import enum
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

from ...backends.backend import Backend
from ...backends.budget import MemoryBudget
from ...records import record
from .base import Sparsifier, Tensor
from .rescale import l1_factors

Densities = float | tuple[float, ...]  # one for all models, or each model's own


class Rescale(enum.Enum):
    """What kept elements are multiplied by."""

    NONE = "1"
    PROBABILITY = "1 / the probability of keeping the element"
    L1 = "sum |x| / sum |kept| of the tensor"


class Mask(Protocol):
    """What is kept of one model's tensor, and the factor on it."""

    def apply(self, x: Any, start: int, backend: Backend) -> Any:
        """Return the block x (n,), which begins at element `start`, masked and multiplied. May reuse x's memory."""

    def scaled(self, factor: float, backend: Backend) -> Mask:
        """Return the mask with a further factor."""


@record(frozen=True)
class Keep(ABC):
    """A rule for which elements of each task vector are kept. A parameter that is a tuple has a value for each model.

    density: the fraction to keep, or the mean probability of keeping an element. From 1 on all of a model is kept, from 0
        down nothing.
    """

    density: Densities

    random: ClassVar[bool] = False  # whether the seed matters
    has_probabilities: ClassVar[bool] = False  # whether masks can divide by the probability of keeping an element

    @property
    def measures(self) -> bool:
        """Whether `masks` reads the tensor."""
        return False

    @property
    def thins(self) -> bool:
        """Whether some but not all elements of any model are kept."""
        return any(0.0 < density < 1.0 for density in self._all)

    @property
    def _all(self) -> tuple[float, ...]:
        return self.density if isinstance(self.density, tuple) else (self.density,)

    def density_of(self, model: int) -> float:
        """Return the model's density."""
        return self.density[model] if isinstance(self.density, tuple) else self.density

    def thinned(self, models: int) -> list[int]:
        """Return the models of which some but not all elements are kept."""
        return [model for model in range(models) if 0.0 < self.density_of(model) < 1.0]

    def of_models(self, models: Sequence[int]) -> Keep:
        """Return the same rule for some of the models, as base.Sparsifier.of_models."""
        each = {name: value for name, value in vars(self).items() if isinstance(value, tuple)}
        return dataclasses.replace(self, **{name: tuple([value[k] for k in models]) for name, value in each.items()})

    def memory(self, models: int, size: int, itemsize: int, budget: MemoryBudget) -> int:
        """Return the bytes that `masks` takes, as base.Part.memory."""
        return 0

    def row_memory(self, models: int, shape: tuple[int, ...], transposed: bool, itemsize: int) -> int:
        """Return the bytes beside these that depend on the shape, as base.Part.row_memory."""
        return 0

    @abstractmethod
    def masks(self, tensor: Tensor, backend: Backend, divide: bool) -> Sequence[Mask | None]:
        """Return what is kept of each model; None: everything. divide: by the probability of keeping an element."""

    def l1_factors(self, tensor: Tensor, backend: Backend, masks: Sequence[Mask | None]) -> Mapping[int, float]:
        """Return, for each model that is thinned, the factor that restores the tensor's L1 norm. Reads the tensor once."""
        thinned = {model: mask for model in self.thinned(tensor.models) if (mask := masks[model]) is not None}
        return l1_factors(tensor, backend, list(thinned), lambda model, x, start: thinned[model].apply(x, start, backend))


@record(frozen=True)
class KeepAndRescale(Sparsifier):
    """The sparsifier of one rule and one way to rescale.

    title: what the tool calls it, which is its name in merge_lock.json.

    Raises ValueError if kept elements are to be divided by probabilities that the rule doesn't have.
    """

    title: str
    keep: Keep
    rescale: Rescale

    def __post_init__(self) -> None:
        if self.rescale is Rescale.PROBABILITY and not self.keep.has_probabilities:
            raise ValueError(f"{type(self.keep).__name__} can't divide by the probability of keeping an element")

    @property
    def name(self) -> str:
        return self.title

    @property
    def random(self) -> bool:
        return self.keep.random

    @property
    def measures(self) -> bool:
        return self.keep.measures or (self.rescale is Rescale.L1 and self.keep.thins)

    def parameters(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self.keep), "rescale": self.rescale is not Rescale.NONE}

    def memory(self, models: int, size: int, itemsize: int, budget: MemoryBudget) -> int:
        return self.keep.memory(models, size, itemsize, budget)

    def row_memory(self, models: int, shape: tuple[int, ...], transposed: bool, itemsize: int) -> int:
        return self.keep.row_memory(models, shape, transposed, itemsize)

    def prepare(self, tensor: Tensor, backend: Backend) -> Sequence[Mask | None]:
        masks = list(self.keep.masks(tensor, backend, self.rescale is Rescale.PROBABILITY))
        if self.rescale is Rescale.L1 and self.keep.thins:
            for model, factor in self.keep.l1_factors(tensor, backend, masks).items():
                mask = masks[model]
                masks[model] = None if mask is None else mask.scaled(factor, backend)
        return masks

    def of_models(self, models: Sequence[int]) -> KeepAndRescale:
        return dataclasses.replace(self, keep=self.keep.of_models(models))

    def apply(self, x: Any, start: int, state: Mask | None, backend: Backend) -> Any:
        return x if state is None else state.apply(x, start, backend)
