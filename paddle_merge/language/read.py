"""mergekit's recipes: YAML -> Recipe. Every mistake is told by line and column, with what was probably meant."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from ..dtypes import FLOATS, DType
from ..errors import ConfigError
from ..methods.named import Method, Parameter
from ..methods.registry import IDLE, find, names, parameter_names
from ..parsing import nearest
from ..recipe import Condition, Input, Recipe, Setting, Slice, Value
from ..resolve import typed
from .nodes import Nodes, documents, is_null

KEYS = ("models", "slices", "modules", "merge_method", "base_model", "parameters", "dtype", "out_dtype", "seed")
LATER = ("tokenizer_source", "tokenizer", "chat_template", "name")
Settings = dict[str, Setting]


@dataclass(frozen=True)
class Told:
    """notes: what is allowed but likely not meant."""

    recipe: Recipe
    notes: tuple[str, ...]


def read(recipe: str) -> Told:
    """recipe: a file, or YAML (which has more than one line). Raises ConfigError listing every mistake."""
    if "\n" in recipe:
        return parse(recipe, "recipe_yaml")
    try:
        with open(recipe, encoding="utf-8-sig") as file:
            text = file.read()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"{recipe}: can't be read ({reason})") from None
    return parse(text, recipe)


@functools.lru_cache(8)
def parse(text: str, where: str) -> Told:
    """where: what to call the text in errors. Raises ConfigError listing every mistake."""
    return _Reader(where).read(text)


class _Reader(Nodes):
    def __init__(self, where: str):
        super().__init__(where)
        self._specs: dict[str, int] = {}  # paths of models -> their places

    def read(self, text: str) -> Told:
        found = documents(text, self._where)
        if len(found) != 1:
            raise ConfigError(f"{self._where}: must hold one recipe, not {len(found)}")
        try:
            recipe = self._recipe(found[0])
        except RecursionError:
            raise ConfigError(f"{self._where}: is nested too deeply") from None
        if self.problems or recipe is None:
            raise ConfigError(self.problems)
        return Told(recipe, tuple(self.notes))

    # --- the document

    def _recipe(self, node: yaml.Node) -> Recipe | None:
        given = self._top(node)
        method = self._method(node, given.get("merge_method"))
        base = self.text(given["base_model"]) if "base_model" in given else None
        out_dtype = self._dtype(given, "out_dtype") or self._dtype(given, "dtype")
        kinds: list[str] = [kind for kind in ("models", "slices", "modules") if kind in given]
        if len(kinds) != 1:
            named = ", ".join(kinds) or "none of them"
            self.wrong(node, f"give one of models, slices and modules, not {named}")
            return None
        settings = self._settings(given.get("parameters"), method)
        module: yaml.Node | None = given[kinds[0]]
        if kinds == ["modules"]:
            module, kinds, own = self._module(given["modules"], method)
            settings = _joined(own, settings)
        if module is None:
            return None
        parts = self._models(module, method) if kinds == ["models"] else self._slices(module, method)
        order = [spec for spec in self._specs if spec != base]
        place = {spec: number for number, spec in enumerate([*order, *([base] if base else [])])}
        slices = [self._slice(node, part, method, base, place) for part in parts]
        if self.problems or method is None:
            return None
        seed = typed(self.scalar(given["seed"]), Parameter("seed", int)) if "seed" in given else 0
        return Recipe(tuple(order), base, method, tuple(filter(None, slices)), settings, seed=seed, out_dtype=out_dtype)

    def _top(self, node: yaml.Node) -> dict[str, yaml.Node]:
        given = {}
        for name, (key, value) in self.mapping(node, "a recipe").items():
            if name in KEYS:
                given[name] = value
            elif name in LATER:
                self.wrong(key, f"{name!r} can't be used yet")
            elif nearest(name, KEYS):
                self.wrong(key, f"unknown key {name!r}{nearest(name, KEYS)}")
            else:
                belongs = "; it belongs under parameters" if name in parameter_names() else ""
                self.note(key, f"{name!r} has no effect, here or in mergekit{belongs}")
        return {name: value for name, value in given.items() if not is_null(value)}

    def _method(self, node: yaml.Node, value: yaml.Node | None) -> Method | None:
        """None if there is none; the rest is read all the same, for its mistakes."""
        if value is None:
            self.wrong(node, "merge_method is missing")
            return None
        name = self.text(value)
        method = find(name)
        if method is None and name:
            self.wrong(value, f"unknown merge_method {name!r}{nearest(name, names())}; there are {', '.join(names())}")
        return method

    def _dtype(self, given: Mapping[str, yaml.Node], key: str) -> DType | None:
        if key not in given:
            return None
        name = self.text(given[key]).removeprefix("torch.")
        name = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}.get(name, name)
        if name not in FLOATS:
            self.wrong(given[key], f"{key} {name!r} must be one of {', '.join(FLOATS)}{nearest(name, FLOATS)}")
        return FLOATS.get(name)

    # --- what is merged

    def _module(self, node: yaml.Node, method: Method | None) -> tuple[yaml.Node | None, list[str], Settings]:
        modules = self.mapping(node, "modules")
        if len(modules) != 1:
            self.wrong(node, f"modules must hold one module, not {len(modules)}: {', '.join(modules)}")
            return None, [], {}
        (_, content), *_ = modules.values()
        inner = self.known(content, ("models", "slices", "parameters"), "a module")
        kinds: list[str] = [kind for kind in ("models", "slices") if kind in inner]
        if len(kinds) != 1:
            self.wrong(content, "a module must have models or slices")
            return None, [], {}
        return inner[kinds[0]], kinds, self._settings(inner.get("parameters"), method)

    def _models(self, node: yaml.Node, method: Method | None) -> list[dict[str, Any]]:
        sources = [self._source(item, ("model", "parameters"), method) for item in self.list(node, "models")]
        return [{"node": node, "sources": sources, "settings": {}, "base": None}]

    def _slices(self, node: yaml.Node, method: Method | None) -> list[dict[str, Any]]:
        found = []
        for item in self.list(node, "slices"):
            inner = self.known(item, ("sources", "parameters", "base_model", "residual_weight"), "a slice")
            sources = [
                self._source(source, ("model", "layer_range", "parameters"), method)
                for source in self.list(inner.get("sources", item), "sources")
            ]
            base = self.text(inner["base_model"]) if "base_model" in inner else None
            settings = self._settings(inner.get("parameters"), method)
            found.append({"node": item, "sources": sources, "settings": settings, "base": base})
        if not found:
            self.wrong(node, "slices is empty")
        return found

    def _source(self, node: yaml.Node, keys: tuple[str, ...], method: Method | None) -> dict[str, Any]:
        if isinstance(node, yaml.ScalarNode) and "layer_range" not in keys:
            inner: dict[str, yaml.Node] = {"model": node}
        else:
            inner = self.known(node, keys, "a model")
        if "model" not in inner:
            self.wrong(node, "model, the path of a checkpoint, is missing")
        spec = self.text(inner["model"]) if "model" in inner else ""
        self._specs.setdefault(spec, len(self._specs))
        layers = self._range(inner["layer_range"]) if "layer_range" in inner else None
        if "layer_range" in keys and layers is None and "layer_range" not in inner:
            self.wrong(node, "layer_range is missing: [first, end], the end not included")
        settings = self._settings(inner.get("parameters"), method, of_model=True)
        return {"node": node, "spec": spec, "layers": layers, "settings": settings}

    def _range(self, node: yaml.Node) -> tuple[int, int] | None:
        values = [self.scalar(item) for item in node.value] if isinstance(node, yaml.SequenceNode) else []
        if len(values) == 2 and all(type(value) is int for value in values) and 0 <= values[0] < values[1]:  # type: ignore[operator]
            return values[0], values[1]  # type: ignore[return-value]
        self.wrong(node, "layer_range must be two whole numbers, [first, end], the end not included and larger")
        return None

    def _slice(
        self, top: yaml.Node, part: dict[str, Any], method: Method | None, base: str | None, place: Mapping[str, int]
    ) -> Slice | None:
        """The base found its role: subtracted, or one of the models."""
        if method is None:
            return None
        node, sources = part["node"], list(part["sources"])
        if part["base"] not in (None, base):
            self.wrong(node, f"base_model of a slice must be the recipe's, {base!r}")
        if base is None and method.base in ("required", "first"):
            self.wrong(top, f"base_model is missing, which {method.name} needs")
            return None
        lengths = {source["layers"][1] - source["layers"][0] for source in sources if source["layers"]}
        if len(lengths) > 1:
            self.wrong(node, "all sources of a slice must have the same number of layers")
        based = [source for source in sources if source["spec"] == base]
        others = [source for source in sources if source["spec"] != base]
        if base is not None and not based:
            like = sources[0]["layers"] if sources else None
            based = [{"spec": base, "layers": like, "settings": {}}]

        def an_input(source: Mapping[str, Any]) -> Input:
            return Input(place[source["spec"]], source["layers"][0] if source["layers"] else 0, source["settings"])

        subtracts = method.base in ("required", "optional")
        models = others if subtracts else [*based, *others]
        if method.name == "passthrough" and not subtracts and others:
            models = sources  # a base that isn't named among them only gives config and tokenizer
        if not (method.least <= len(models) <= (method.most or len(models))):
            most = f" to {method.most}" if method.most and method.most > method.least else ""
            more = " or more" if method.most is None else ""
            self.wrong(node, f"{method.name} takes {method.least}{most}{more} models, not {len(models)}")
        layers = next(iter(lengths)) if lengths else None
        inputs = tuple(map(an_input, models))
        return Slice(inputs, an_input(based[0]) if subtracts and based else None, layers, part["settings"])

    # --- parameters

    def _settings(self, node: yaml.Node | None, method: Method | None, of_model: bool = False) -> Settings:
        found: Settings = {}
        if method is None:
            return found
        known = {parameter.name: parameter for parameter in method.parameters}
        for name, (key, value) in (self.mapping(node, "parameters") if node is not None else {}).items():
            if name in known:
                if setting := self._setting(value, known[name]):
                    found[name] = setting
                if of_model and not known[name].each:
                    self.note(key, f"{name!r} is for all models together: beside one it has no effect, as in mergekit")
            elif name in IDLE:
                self.note(key, f"{name!r} has no effect: {IDLE[name]}")
            elif name in parameter_names():
                self.note(key, f"{name!r} has no effect with {method.name}, which takes {', '.join(known) or 'none'}")
            else:
                self.wrong(key, f"unknown parameter {name!r}{nearest(name, known)}; {method.name} takes {', '.join(known)}")
        return found

    def _setting(self, node: yaml.Node, parameter: Parameter) -> Setting:
        """A value, a gradient, a condition, or a list of them."""
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
                self.wrong(inner["filter"], f"{filter!r} is no regular expression ({error})")
        return tuple(Condition(one.value, filter) for one in self._setting(inner["value"], parameter))

    def _value(self, node: yaml.Node, parameter: Parameter) -> Value:
        value = self.scalar(node)
        try:
            return typed(value, parameter)  # type: ignore[no-any-return]
        except ValueError as error:
            self.wrong(node, str(error))
            return value


def _joined(first: Settings, second: Settings) -> Settings:
    """Where no condition of the first's matches, the second's count."""
    return {name: first.get(name, ()) + second.get(name, ()) for name in {**first, **second}}
