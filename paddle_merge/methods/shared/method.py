"""Describe methods by name, as recipes call them: their parameters, defaults, and the parts that they consist of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field
from functools import cached_property
from typing import Any

from ...backends.budget import MemoryBudget
from ...records import record
from .base import Merger, Sparsifier
from .problems import Problem

REQUIRED: Any = object()  # the default of a parameter that has none


@record(frozen=True)
class Parameter:
    """A parameter of a method.

    type: bool, int, float or str. default: REQUIRED if it must be given; None if it follows from other parameters. each:
    whether every model has a value of its own; `make` then gets a tuple. about: a few words for people.
    """

    name: str
    type: type
    default: Any = REQUIRED
    each: bool = False
    about: str = ""


def no_problems(**values: Any) -> list[Problem]:
    """Find nothing wrong with any parameters."""
    return []


@record(frozen=True)
class Method:
    """A method that recipes can name.

    name: as recipes write it.
    make: takes every parameter by name and returns the parts. It is called with parameters that have no problems.
    parameters: in the order in which they are shown.
    about: when to use it, in a few words, for the table of methods; about_cn: the same in Chinese.
    source: the paper, or the program that has it.
    paper: the paper's address, for model cards; "" if there is none.
    example: typical values of parameters, by name, with which the benchmark and the laws run it; others are at their
    default.
    problems: takes every parameter by name and returns what is wrong with them.
    base: "required" or "optional": the method works on task vectors against a base model; "model": the base, if given, is
        one of the models; "first": it is the first of them, and required.
    least, most: how many models it takes, without the base unless that is one of them. most None: any number.
    base_role, roles: what the base must be, and each model, in order, where they differ; "" and () where they don't.
    by_layer: whether `make` and `problems` also get `layer`, the place of the tensor's layer in its stack: 0 the first
        layer, or no layer; 1 the last.
    mergekit: whether mergekit has a method of this name.
    place: where lists of methods show it. Methods that a page of configs/recipes describes have a place; others come last,
        in alphabetical order.
    """

    name: str
    make: Callable[..., ResolvedMethod]
    parameters: tuple[Parameter, ...] = ()
    about: str = ""
    about_cn: str = ""
    source: str = ""
    paper: str = ""
    example: Mapping[str, Any] = field(default_factory=dict)
    problems: Callable[..., list[Problem]] = no_problems
    base: str = "optional"
    least: int = 1
    most: int | None = None
    base_role: str = ""
    roles: tuple[str, ...] = ()
    by_layer: bool = False
    mergekit: bool = False
    place: int = 100

    def __repr__(self) -> str:
        return f"Method({self.name!r})"


WEIGHT = Parameter("weight", float, each=True, about="how much a model counts")
WEIGHT_OF_ONE = Parameter("weight", float, 1.0, each=True, about="how much a model counts")
LAMBDA = Parameter("lambda", float, 1.0, about="factor on the merged task vector")


@record(frozen=True, repr=False)
class ResolvedMethod:
    """How one tensor's sources become one: a method whose parameters have values.

    sparsifier: None if everything is kept. scale: factor on the merged task vector before the base is added back.
    """

    sparsifier: Sparsifier | None
    merger: Merger
    scale: float = 1.0

    def __repr__(self) -> str:
        return self._text

    @cached_property
    def _text(self) -> str:
        """Of the many tensors that share a method, each is described in the digest of a plan."""
        return f"ResolvedMethod({self.sparsifier!r}, {self.merger!r}, {self.scale!r})"

    @cached_property
    def measures(self) -> bool:
        """Whether a tensor is read twice: once to measure it, once to merge it."""
        return any(part.measures for part in self._parts)

    @property
    def _parts(self) -> tuple[Sparsifier | Merger, ...]:
        return (self.merger,) if self.sparsifier is None else (self.sparsifier, self.merger)

    def memory(self, models: int, size: int, itemsize: int, budget: MemoryBudget) -> int:
        """Return the bytes that measuring takes beside blocks, for a tensor of `size` elements of `itemsize` bytes each in
        compute dtype."""
        return sum(part.memory(models, size, itemsize, budget) for part in self._parts)

    def row_memory(self, models: int, shape: tuple[int, ...], transposed: bool, itemsize: int) -> int:
        """Return the bytes beside these that depend on the shape: what is held of every row or column."""
        return sum(part.row_memory(models, shape, transposed, itemsize) for part in self._parts)
