"""Methods by name, as recipes call them: which parameters there are, what they are by default, and what they make."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ...backends.budget import MemoryBudget
from .base import ByRow, Merger, Sparsifier

REQUIRED: Any = object()  # a default that isn't there


@dataclass(frozen=True)
class Parameter:
    """One of a method's. type: bool, int, float or str. each: whether every model has one of its own, and `make` gets a
    tuple. default: REQUIRED if it must be given. about: a few words for people."""

    name: str
    type: type
    default: Any = REQUIRED
    each: bool = False
    about: str = ""


@dataclass(frozen=True)
class Method:
    """make: takes every parameter by name and returns a ResolvedMethod. Raises ValueError, naming the parameter.

    base: "required" or "optional": the method works on task vectors against it; "model": it is one of the models; "first":
    it is the first of them, and required.
    least, most: how many models it takes, the base not counted unless it is one of them.
    by_layer: `make` also gets `layer`, where in its stack the tensor's layer is: 0 is the first, or none; 1 the last.
    source: the paper, or who else has it.
    """

    name: str
    make: Callable[..., ResolvedMethod]
    parameters: tuple[Parameter, ...] = ()
    base: str = "optional"
    least: int = 1
    most: int | None = None
    by_layer: bool = False
    source: str = ""

    def __repr__(self) -> str:
        return f"Method({self.name!r})"


WEIGHT = Parameter("weight", float, each=True, about="how much a model counts")
LAMBDA = Parameter("lambda", float, 1.0, about="factor on the merged task vector")


@dataclass(frozen=True)
class ResolvedMethod:
    """How one tensor's sources become one. sparsifier may be None; scale: factor on the merged task vector before the base
    is added back."""

    sparsifier: Sparsifier | None
    merger: Merger
    scale: float = 1.0

    @cached_property
    def measures(self) -> bool:
        """Whether a tensor is read twice: once to measure it, once to merge it."""
        return self.merger.measures or (self.sparsifier is not None and self.sparsifier.measures)

    def memory(self, models: int, size: int, itemsize: int, budget: MemoryBudget) -> int:
        """Bytes, beside blocks, for a tensor of so many elements, of so many bytes each while they are computed with."""
        return sum(
            part.memory(models, size, itemsize, budget) for part in (self.sparsifier, self.merger) if part is not None
        )

    def row_memory(self, models: int, shape: tuple[int, ...], transposed: bool, itemsize: int) -> int:
        """Bytes beside these, for what is known of each line of a tensor."""
        parts: list[Any] = [self.sparsifier, self.merger]
        return sum(part.row_memory(models, shape, transposed, itemsize) for part in parts if isinstance(part, ByRow))
