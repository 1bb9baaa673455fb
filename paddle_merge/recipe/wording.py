"""Word a parameter's problem as its reader calls the parameter: a flag of the command line, or a word of a recipe."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from typing import Any

from ..methods.shared.problems import Problem

# Parameters whose flag has another name.
FLAGS = {"weight": "weight_list", "density": "reserve_p", "lambda": "scale"}
# Parameters of methods that PaddleNLP doesn't have for which there are flags; --method_parameters sets all others.
WITH_FLAGS = ("weight", "density", "lambda", "normalize", "rescale")


def flag_of(parameter: str) -> str:
    """Return the name of a parameter's flag, without dashes."""
    return FLAGS.get(parameter, parameter)


class _Names(Mapping[str, Any]):
    """Map every name to what stands for it."""

    def __init__(self, stand_in: Callable[[str], Any]):
        self._stand_in = stand_in

    def __getitem__(self, name: str) -> Any:
        return self._stand_in(name)

    def __iter__(self) -> Any:
        return iter(())

    def __len__(self) -> int:
        return 0


class _Flag(str):
    """A parameter with a flag: `{reserve_p}` is --reserve_p, `{normalize:false}` is pass --no_normalize."""

    def __format__(self, value: str) -> str:
        name = flag_of(str(self))
        return {"": f"--{name}", "true": f"pass --{name}", "false": f"pass --no_{name}"}[value]


class _NamedFlag(str):
    """A parameter without one: `{gamma}` is --method_parameters gamma, `{x:false}` is pass --method_parameters x=false."""

    def __format__(self, value: str) -> str:
        return f"pass --method_parameters {self!s}={value}" if value else f"--method_parameters {self!s}"


class _Word(str):
    """A parameter of a recipe: `{reserve_p}` is 'reserve_p', `{normalize:false}` is set normalize: false."""

    def __format__(self, value: str) -> str:
        return f"set {self!s}: {value}" if value else f"{str(self)!r}"


def as_flags(problem: Problem, named: Container[str] = ()) -> str:
    """Return the sentence for someone who typed flags: "--reserve_p 2 is the fraction of elements to keep: ...".

    named: the parameters that are given by --method_parameters.
    """

    def stand_in(name: str) -> str:
        return _NamedFlag(name) if name in named else _Flag(name)

    sentence = problem.sentence.format_map(_Names(stand_in))
    return sentence if problem.parameter is None else f"{stand_in(problem.parameter):} {sentence}"


def in_recipes(problem: Problem) -> str:
    """Return the sentence for someone who wrote a recipe: "parameter 'density' 2 is ..."."""
    sentence = problem.sentence.format_map(_Names(_Word))
    return sentence if problem.parameter is None else f"parameter {problem.parameter!r} {sentence}"
