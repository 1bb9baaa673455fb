"""Read the parameters of methods in a recipe: values, gradients over the layers, and filters."""

from __future__ import annotations

import re

import yaml

from ..methods.registry import IDLE, parameter_names
from ..methods.shared.method import Method, Parameter
from ..parsing import nearest
from .parameters import typed
from .recipe import Condition, Setting, Value
from .yaml_nodes import Nodes, is_null

# The keys of a recipe, among them `parameters`.
KEYS = (
    *("models", "slices", "modules", "merge_method", "base_model", "parameters", "dtype", "out_dtype", "seed", "name"),
    *("tokenizer_source", "tokenizer", "chat_template", "expert_alignment", "router", "keep_experts", "drop_layers"),
)
Settings = dict[str, Setting]


class SettingsReader(Nodes):
    """Read the mappings under `parameters`."""

    def _settings(self, node: yaml.Node | None, method: Method | None, of_model: bool = False) -> Settings:
        found: Settings = {}
        if method is None:
            return found
        known = {parameter.name: parameter for parameter in method.parameters}
        for name, (key, value) in (self.mapping(node, "parameters") if node is not None else {}).items():
            if name in known and is_null(value):
                self.wrong(key, f"{name!r} has no value")
            elif name in known:
                if setting := self._setting(value, known[name]):
                    found[name] = setting
                if of_model and not known[name].each:
                    self.note(
                        key,
                        f"{name!r} applies to all models together: under a single model it has no effect, as in mergekit",
                    )
            elif name in IDLE:
                self.note(key, f"{name!r} has no effect: {IDLE[name]}")
            elif name in parameter_names():
                self.note(key, f"{name!r} has no effect with {method.name}, which takes {', '.join(known) or 'none'}")
            elif nearest(name, known) or nearest(name, parameter_names()):
                self.wrong(key, f"unknown parameter {name!r}{nearest(name, known)}; {method.name} takes {', '.join(known)}")
            else:
                belongs = "; it belongs beside merge_method" if name in KEYS else ""
                self.note(key, f"{name!r} has no effect among parameters, here or in mergekit{belongs}")
        return found

    def _setting(self, node: yaml.Node, parameter: Parameter) -> Setting:
        """Return the setting of a value, a gradient, a condition, or a list of conditions."""
        if is_null(node):
            return ()
        if isinstance(node, yaml.ScalarNode):
            return (Condition(self._value(node, parameter)),)
        if isinstance(node, yaml.MappingNode):
            return self._condition(node, parameter)
        if not node.value:
            self.wrong(node, f"{parameter.name!r} is an empty list")
            return ()
        if all(isinstance(item, yaml.ScalarNode) for item in node.value):
            return (Condition(tuple(self._value(item, parameter) for item in node.value)),)
        return tuple(condition for item in node.value for condition in self._condition(item, parameter))

    def _condition(self, node: yaml.Node, parameter: Parameter) -> Setting:
        inner = self.known(node, ("filter", "value"), f"an item of {parameter.name!r}")
        if "value" not in inner:
            self.wrong(node, f"an item of {parameter.name!r} needs a value")
            return ()
        filter = self.text(inner["filter"]) if "filter" in inner else None
        if filter is not None and filter.startswith("re:"):
            try:
                re.compile(filter[3:])
            except re.error as error:
                self.wrong(inner["filter"], f"{filter!r} is not a regular expression ({error})")
        value = inner["value"]
        items = value.value if isinstance(value, yaml.SequenceNode) else [value]
        if not all(isinstance(item, yaml.ScalarNode) for item in items):
            self.wrong(value, f"the value of {parameter.name!r} must be a single value or a list; filters can't be nested")
            return ()
        return tuple(Condition(one.value, filter) for one in self._setting(value, parameter))

    def _value(self, node: yaml.Node, parameter: Parameter) -> Value:
        value = self.scalar(node)
        try:
            return typed(value, parameter)  # type: ignore[no-any-return]
        except ValueError as error:
            self.wrong(node, str(error))
            return value


def joined(first: Settings, second: Settings) -> Settings:
    """Return both settings of each parameter, the first ones before the second ones: the first that matches applies."""
    return {name: first.get(name, ()) + second.get(name, ()) for name in {**first, **second}}
