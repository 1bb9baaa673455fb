"""Resolve the parameters of a recipe for one tensor: settings, gradients and filters.

The most specific setting applies: the model's own, then the slice's, then the recipe's. Of a list of conditions the first
one applies whose filter matches the tensor's name; if none matches, the next less specific setting does. This is mergekit's
rule.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..dtypes import LARGEST
from ..methods.shared.method import REQUIRED, Parameter, ResolvedMethod
from ..parsing import shown
from .recipe import Condition, Recipe, Setting, Settings, Slice, Stage, Value
from .wording import in_recipes

_WORDS = {
    **dict.fromkeys(("true", "yes", "on", "1", "t", "y"), True),
    **dict.fromkeys(("false", "no", "off", "0", "f", "n"), False),
}


class Resolver:
    """Resolve the parameters of a recipe's tensors. Equal parameters give the same ResolvedMethod object.

    used: ids of the conditions that applied to at least one tensor.
    """

    def __init__(self, recipe: Recipe | Stage):
        self._recipe = recipe
        self._made: dict[Any, ResolvedMethod] = {}
        self._gradients: dict[tuple[int, str], list[Any]] = {}  # (id of a condition, parameter) -> its values, converted
        self._constant: dict[int, dict[str, Any] | None] = {}  # id of a slice -> the values of all its tensors
        self._last: tuple[Mapping[str, Any], ResolvedMethod] | None = None  # what `resolved` was last asked, and returned
        self.used: set[int] = set()

    def resolved(self, values: Mapping[str, Any]) -> ResolvedMethod:
        """Return the method with these parameters. Raises ValueError with a sentence that names a parameter."""
        if self._last is not None and self._last[0] is values:
            return self._last[1]
        key = tuple(values.items())
        if key not in self._made:
            if problems := self._recipe.method.problems(**values):
                raise ValueError("; ".join(map(in_recipes, problems)))
            self._made[key] = self._recipe.method.make(**values)
        self._last = values, self._made[key]
        return self._made[key]

    def values(self, part: Slice, name: str, t: float, names: Sequence[str] = ()) -> dict[str, Any]:
        """Return the values of the method's parameters for one tensor of the output, by the parameters' names.

        A parameter that each model has its own value of gives a tuple, in the order of the slice's inputs.

        part: the slice that the tensor belongs to.
        name: the tensor's name in the output.
        t: the position of the tensor's layer in its stack, from 0 (the first layer, or no layer) to 1 (the last).
        names: the tensor's name in each model; empty if it is `name` in all of them.
        Raises ValueError with a sentence that names the parameter.
        """
        if id(part) not in self._constant:
            self._constant[id(part)] = None
            if not self._recipe.method.by_layer and all(map(_is_constant, _settings_of(self._recipe, part))):
                self._constant[id(part)] = self._values(part, name, t, names)
        constant = self._constant[id(part)]
        return self._values(part, name, t, names) if constant is None else constant

    def _values(self, part: Slice, name: str, t: float, names: Sequence[str]) -> dict[str, Any]:
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
                    return self._at(condition, t, parameter)
        if parameter.default is REQUIRED:
            raise ValueError(f"parameter {parameter.name!r} is required, and nothing sets it")
        return parameter.default

    def _at(self, condition: Condition, t: float, parameter: Parameter) -> Any:
        """Return the value of a condition at position `t` of the layers: gradients of numbers are interpolated linearly."""
        if not isinstance(condition.value, tuple):
            return typed(condition.value, parameter)
        key = id(condition), parameter.name
        if key not in self._gradients:
            self._gradients[key] = [typed(value, parameter) for value in condition.value]
        values = self._gradients[key]
        scaled = t * (len(values) - 1)
        if (
            abs(scaled - round(scaled)) < 1e-9
        ):  # a value for each layer: of layer 5 of 8, 5/7 * 7 may be a rounding error below 5
            return values[round(scaled)]
        before = int(scaled)
        if parameter.type not in (int, float):
            return values[before]
        fraction = scaled - before
        return typed((1 - fraction) * values[before] + fraction * values[before + 1], parameter)


def is_uniform(recipe: Recipe) -> bool:
    """Return whether all tensors are merged with the same parameters, so none of these varies by layer, name or slice."""
    return not (
        recipe.mixture is not None
        or recipe.method.by_layer
        or len(recipe.slices) > 1
        or not all(_is_constant(setting) for _, setting in settings_of(recipe))
    )


def _is_constant(setting: Setting) -> bool:
    """Return whether a setting is one value for all tensors."""
    return len(setting) == 1 and setting[0].filter is None and not isinstance(setting[0].value, tuple)


def _settings_of(recipe: Recipe | Stage, part: Slice) -> list[Setting]:
    """Return all settings that may apply to a tensor of a slice."""
    places = [recipe.settings, part.settings, *(model.settings for model in part.inputs)]
    return [setting for settings in places for setting in settings.values()]


def matches(filter: str | None, name: str) -> bool:
    """Return whether a filter matches a tensor's name, by mergekit's rules.

    filter: a substring of the name; "*" or None, which match every name; or "re:" and a regular expression to find in it.
    """
    if filter is None or filter == "*":
        return True
    if filter.startswith("re:"):
        return re.search(filter[3:], name) is not None
    return filter in name


def typed(value: Value, parameter: Parameter) -> Any:
    """Return the value converted to the parameter's type. Raises ValueError with a sentence that names the parameter.

    Text is converted too: YAML parsers take "1e-5" for text. 1.0 and 0.0 are booleans too, for so mergekit writes them.
    """
    wanted = parameter.type
    try:
        if wanted is bool:
            return value if isinstance(value, bool) else _WORDS[str(value).lower().removesuffix(".0")]
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
    """Return one sentence for each filter that applied to no tensor of the output."""
    found = dict.fromkeys(
        (name, condition.filter)
        for name, setting in settings_of(recipe)
        for condition in setting
        if condition.filter not in (None, "*") and id(condition) not in resolver.used
    )
    return [f"parameter {name!r}: the filter {filter!r} applies to no tensor" for name, filter in found]


def settings_of(recipe: Recipe | Stage) -> list[tuple[str, Setting]]:
    """Return all settings of a recipe, its slices and its models as (parameter name, setting)."""
    places = [recipe.settings]
    for part in recipe.slices:
        places += [part.settings, *(model.settings for model in part.inputs)]
    return [item for settings in places for item in settings.items()]
