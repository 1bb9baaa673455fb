"""What a recipe's parameters are for one tensor: settings, gradients and filters resolved.

The most particular setting counts: a model's own, then the slice's, then the recipe's; of a list of conditions the first
whose filter matches, and where none does, the next less particular setting. As in mergekit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..dtypes import LARGEST
from ..methods.shared.method import REQUIRED, Parameter, ResolvedMethod
from ..parsing import shown
from .recipe import Condition, Recipe, Setting, Settings, Slice, Stage, Value

_WORDS = {
    **dict.fromkeys(("true", "yes", "on", "1", "t", "y"), True),
    **dict.fromkeys(("false", "no", "off", "0", "f", "n"), False),
}


class Resolver:
    """Resolves the parameters of a recipe's tensors; equal parameters give the same ResolvedMethod.

    used: ids of the conditions that tensors met.
    """

    def __init__(self, recipe: Recipe | Stage):
        self._recipe = recipe
        self._made: dict[Any, ResolvedMethod] = {}
        self.used: set[int] = set()

    def resolved(self, values: Mapping[str, Any]) -> ResolvedMethod:
        """Of resolved values. Raises ValueError: a sentence with the parameter's name."""
        key = tuple(values.items())
        if key not in self._made:
            self._made[key] = self._recipe.method.make(**values)
        return self._made[key]

    def values(self, part: Slice, name: str, t: float, names: Sequence[str] = ()) -> dict[str, Any]:
        """Every parameter of the method, for the output's tensor `name`; of one that each model has its own of, a tuple.

        t: its layer; 0: a stack's first, or none; 1: the last. names: of the models' tensors, where they are called
        otherwise. Raises ValueError: a sentence with the parameter's name.
        """
        own = names or [name] * len(part.inputs)
        shared = part.settings, self._recipe.settings
        values: dict[str, Any] = {}
        for parameter in self._recipe.method.parameters:
            if not parameter.each:
                values[parameter.name] = self._value(parameter, shared, name, t)
                continue
            values[parameter.name] = tuple(
                self._value(parameter, (model.settings, *shared), its, t)
                for model, its in zip(part.inputs, own, strict=True)
            )
        return values | ({"layer": t} if self._recipe.method.by_layer else {})

    def _value(self, parameter: Parameter, places: Sequence[Settings], name: str, t: float) -> Any:
        for settings in places:
            setting = settings.get(parameter.name)
            if setting is None:
                continue
            for condition in setting:
                if matches(condition.filter, name):
                    self.used.add(id(condition))
                    return _at(condition, t, parameter)
        if parameter.default is REQUIRED:
            raise ValueError(f"parameter {parameter.name!r} is needed, and nothing sets it for tensor {name!r}")
        return parameter.default


def is_uniform(recipe: Recipe) -> bool:
    """Whether the recipe says the same for every tensor: no parameter that varies by layer or name, and no slices."""
    return not (
        recipe.method.by_layer
        or len(recipe.slices) > 1
        or any(
            len(setting) > 1 or setting[0].filter is not None or isinstance(setting[0].value, tuple)
            for _, setting in settings_of(recipe)
        )
    )


def matches(filter: str | None, name: str) -> bool:
    """As in mergekit: whether the filter is a part of the name, or "*"; "re:..." is a regular expression found in it."""
    if filter is None or filter == "*":
        return True
    if filter.startswith("re:"):
        return re.search(filter[3:], name) is not None
    return filter in name


def _at(condition: Condition, t: float, parameter: Parameter) -> Any:
    if not isinstance(condition.value, tuple):
        return typed(condition.value, parameter)
    values = [typed(value, parameter) for value in condition.value]
    if parameter.type not in (int, float):
        return values[int(t * (len(values) - 1))]
    scaled = t * (len(values) - 1)
    before = int(scaled)
    fraction = scaled - before
    after = min(len(values) - 1, before + 1)
    return typed((1 - fraction) * values[before] + fraction * values[after], parameter)


def typed(value: Value, parameter: Parameter) -> Any:
    """The value as the parameter's type: "1e-5" (which YAML takes for text) is a number. Raises ValueError."""
    wanted = parameter.type
    try:
        if wanted is bool:
            return value if isinstance(value, bool) else _WORDS[str(value).lower()]
        if isinstance(value, bool) and wanted is not str:
            raise ValueError
        if wanted is int:
            if float(value) != int(float(value)):
                raise ValueError
            return int(float(value))
        if wanted is float and not abs(float(value)) < LARGEST:
            raise ValueError
        return wanted(value)
    except (KeyError, ValueError, OverflowError):
        kinds = {bool: "true or false", int: "a whole number", float: "a number below 1e30", str: "a word"}
        raise ValueError(f"parameter {parameter.name!r} must be {kinds[wanted]}, not {shown(value)}") from None


def unused(recipe: Recipe | Stage, resolver: Resolver) -> list[str]:
    """A sentence on each filter that no tensor of the output met."""
    found = dict.fromkeys(
        (name, condition.filter)
        for name, setting in settings_of(recipe)
        for condition in setting
        if condition.filter not in (None, "*") and id(condition) not in resolver.used
    )
    return [f"parameter {name!r}: the filter {filter!r} matches no tensor that it could count for" for name, filter in found]


def settings_of(recipe: Recipe | Stage) -> list[tuple[str, Setting]]:
    """Every setting there is, by its parameter's name."""
    places = [recipe.settings]
    for part in recipe.slices:
        places += [part.settings, *(model.settings for model in part.inputs)]
    return [item for settings in places for item in settings.items()]
