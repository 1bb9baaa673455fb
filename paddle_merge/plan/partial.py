"""Decide what becomes of tensors that only some of the inputs have, where --missing_tensors says that they aren't refused.

union          the output has the tensors of all inputs, each made of the inputs that have it
fill           the output has the base's tensors: what models lack is the other models', or the base's
intersection   the output has the tensors that all inputs have

What only one input has stays as it is. Without a value of the base there is no task vector, so what the base lacks is the
mean of the models that have it; so is what too few models have for the method, or one that gives each a role of its own.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import field

from ..checkpoints.names import stacks
from ..checkpoints.tensors import Checkpoint, Origin, TensorEntry, origins
from ..errors import ConfigError
from ..methods.shared.method import Method
from ..parsing import tensors_named
from ..recipe.recipe import Input, Recipe, Slice, Stage, count_problem
from ..records import record
from .config_source import ConfigSource
from .layer_config import DEPTHS, FURTHER


@record(frozen=True)
class Kept:
    """Hold inputs without the tensors that the output isn't to have. notes, why: as of heads.Heads."""

    inputs: tuple[Checkpoint, ...]
    notes: tuple[str, ...] = ()
    why: dict[Origin, str] = field(default_factory=dict)


def check(recipe: Recipe) -> None:
    """Raise ConfigError if tensors can't be treated as the recipe says."""
    if recipe.missing_tensors == "error":
        return
    flag = f"--missing_tensors {recipe.missing_tensors}"
    if recipe.stages or any(part.layers is not None or part.module is not None for part in recipe.slices):
        raise ConfigError(f"{flag}: is only for a single merge of whole models, without slices and modules; leave it out")
    if recipe.missing_tensors == "fill" and recipe.slices[0].base is None and recipe.base is None:
        raise ConfigError(f"{flag}: fills in the tensors of the base model, so it needs --base_model_path")


def kept(recipe: Recipe, inputs: Sequence[Checkpoint]) -> Kept:
    """Return the inputs without the tensors that the output isn't to have: those that the base lacks, or some input."""
    if recipe.missing_tensors not in ("fill", "intersection"):
        return Kept(tuple(inputs))
    if recipe.missing_tensors == "fill":
        names, reason = set(inputs[-1].tensors), "the base lacks it (--missing_tensors fill)"
    else:
        names = set.intersection(*(set(one.tensors) for one in inputs))
        reason = "some inputs lack it (--missing_tensors intersection)"
    left = {name: None for one in inputs for name in one.tensors if name not in names}
    found = [
        dataclasses.replace(one, tensors={name: entry for name, entry in one.tensors.items() if name in names})
        for one in inputs
    ]
    why = {origin: reason for one in inputs for name in left if name in one.tensors for origin in origins(one.tensors[name])}
    said = reason.partition(" (")[0].removesuffix("it") + ("it" if len(left) == 1 else "them")
    notes = (f"{tensors_named(list(left))} left out: {said}",) if left else ()
    return Kept(tuple(found), notes, why)


def other_depths(before: Sequence[Checkpoint], after: Sequence[Checkpoint], config_source: ConfigSource) -> list[str]:
    """Return a sentence if the inputs differ in layers, and config.json doesn't count those that the output has.

    before, after: the inputs with all their tensors, and without those that the output isn't to have.
    """
    depths = [stacks(one.tensors) for one in before]
    made = stacks({name: None for one in after for name in one.tensors})
    config = config_source.config
    said = {name: config[name] for name in DEPTHS if type(config.get(name)) is int}
    further = config.get(FURTHER)
    counted = {count + more for count in said.values() for more in (0, further if type(further) is int else 0)}
    if not said or not made or all(one == depths[0] for one in depths) or counted & set(made.values()):
        return []
    name, count = next(iter(said.items()))
    fitting = (
        one.folder
        for one, depth in zip(before, depths, strict=True)
        if depth == made and os.path.isfile(os.path.join(one.folder, "config.json"))
    )
    remedy = f"; --config_from {folder} fits" if (folder := next(fitting, None)) else ""
    return [
        f"{config_source.folder}/config.json has {name} {count}, and the output has {max(made.values())} layers: loaders go"
        f" by config.json{remedy}"
    ]


@record(frozen=True)
class Holders:
    """The inputs that have a tensor. part: the slice, with these models only. entries: the tensor in each, the base's last.

    how: what becomes of the tensor if it isn't merged by the recipe's method: part.base is None then; else "".
    """

    part: Slice
    entries: tuple[TensorEntry, ...]
    how: str = ""


class Partial:
    """Find which inputs a tensor is made of, where only some have it."""

    def __init__(self, recipe: Recipe | Stage):
        self.allowed = isinstance(recipe, Recipe) and recipe.missing_tensors in ("union", "fill")
        self._method, self._parts = recipe.method, dict[tuple[int, ...], Slice]()

    def holders(self, part: Slice, entries: Sequence[TensorEntry | None]) -> Holders:
        """Return the inputs that have a tensor. entries: the tensor in each of part.everything; None where it isn't."""
        pairs = [(one, entry) for one, entry in zip(part.everything, entries, strict=True) if entry is not None]
        models = [(one, entry) for one, entry in pairs if one is not part.base]
        based = len(pairs) > len(models)
        fewer = _apart(self._method, len(part.inputs), len(models))
        if len(pairs) == 1 or fewer or (part.base is not None and not based):
            pairs = models or pairs
            how = "as it is in the only input that has it" if len(pairs) == 1 else f"mean of {len(pairs)} models"
            return Holders(self._of(part, [one for one, _ in pairs], None), tuple(entry for _, entry in pairs), how)
        only = self._of(part, [one for one, _ in models], part.base)
        return Holders(only, tuple(entry for _, entry in pairs))

    def _of(self, part: Slice, models: Sequence[Input], base: Input | None) -> Slice:
        """Return the slice with some of its models. Equal ones are the same object, by which parameters are kept."""
        key = id(part), base is not None, *(one.number for one in models)
        if key not in self._parts:
            self._parts[key] = dataclasses.replace(part, inputs=tuple(models), base=base)
        return self._parts[key]


def _apart(method: Method, models: int, holders: int) -> bool:
    """Return whether a method can't do with some of its models: it tells them apart, or takes more of them."""
    tells_apart = bool(method.roles) or method.base == "first" or method.most is not None
    return holders < models and (tells_apart or count_problem(method, holders) is not None)
