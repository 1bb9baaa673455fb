"""Methods by name, as recipes call them: which parameters there are, what they are by default, and what they make."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..recipe import Mix

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
    """make: takes every parameter by name and returns a Mix. Raises ValueError, a sentence that names the parameter.

    base: "required" or "optional": the method works on task vectors against it; "model": it is one of the models; "first":
    it is the first of them, and required.
    least, most: how many models it takes, the base not counted unless it is one of them.
    by_layer: `make` also gets `layer`, where in its stack the tensor's layer is: 0 is the first, or none; 1 the last.
    source: the paper, or who else has it.
    """

    name: str
    make: Callable[..., Mix]
    parameters: tuple[Parameter, ...] = ()
    base: str = "optional"
    least: int = 1
    most: int | None = None
    by_layer: bool = False
    source: str = ""

    def __repr__(self) -> str:
        return f"Method({self.name!r})"
