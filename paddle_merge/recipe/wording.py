"""Word a parameter's problem as its reader calls the parameter: a flag of the command line, or a word of a recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..methods.shared.problems import Problem

FLAGS = {"weight": "weight_list"}  # parameters whose flag has another name


class _Flag(str):
    """A parameter that is a flag: `{reserve_p}` is --reserve_p, `{normalize:false}` is pass --no_normalize."""

    def __format__(self, value: str) -> str:
        name = FLAGS.get(self, str(self))
        return {"": f"--{name}", "true": f"pass --{name}", "false": f"pass --no_{name}"}[value]


class _Word(str):
    """A parameter of a recipe: `{reserve_p}` is 'reserve_p', `{normalize:false}` is set normalize: false."""

    def __format__(self, value: str) -> str:
        return f"set {self!s}: {value}" if value else f"{str(self)!r}"


class _Names(Mapping[str, Any]):
    """Any name -> what stands for it."""

    def __init__(self, kind: Callable[[str], str]):
        self._kind = kind

    def __getitem__(self, name: str) -> str:
        return self._kind(name)

    def __iter__(self) -> Any:
        return iter(())

    def __len__(self) -> int:
        return 0


def as_flags(problem: Problem) -> str:
    """Return the sentence for someone who typed flags: "--reserve_p 2 is the fraction of elements to keep: ..."."""
    told = problem.sentence.format_map(_Names(_Flag))
    return told if problem.parameter is None else f"{_Flag(problem.parameter):} {told}"


def in_recipes(problem: Problem) -> str:
    """Return the sentence for someone who wrote a recipe: "parameter 'density' 2 is ..."."""
    told = problem.sentence.format_map(_Names(_Word))
    return told if problem.parameter is None else f"parameter {problem.parameter!r} {told}"
