"""Read each document of a recipe as far as that is possible without the other documents."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from ..dtypes import OUT_DTYPES, DType, ScaledForm
from ..methods.registry import IDLE, find, names, parameter_names
from ..methods.shared.method import Method, Parameter
from ..parsing import nearest, shown
from . import chat_template
from .fields import Fields
from .yaml_nodes import is_null
from .yaml_settings import KEYS, Settings, SettingsReader, joined
from .yaml_tokenizer import DraftTokenizer, read_tokenizer

CARD = ("license", "tags", "language", "library_name", "pipeline_tag")  # of model cards, which recipes are copied from
# Keys that change the result in the places where they belong, and don't elsewhere.
MEANT = {
    "base",
    "base_model",
    "filter",
    "layer_range",
    "model",
    "models",
    "modules",
    "parameters",
    "slices",
    "sources",
    "value",
}
_FLAGS = {one.name for one in dataclasses.fields(Fields)} - {*KEYS} - parameter_names()
# The layer_range of a first slice that gives only what comes before the layers, or of a last one: only what comes behind.
NO_LAYERS = (0, 0)


@dataclass(eq=False)
class Draft:
    """One document of a recipe, before the names of the models are resolved.

    parts: its slices, as mappings with the keys node, sources, settings, base and possibly module and at.
    chat_template, expert_alignment, router, keep_experts, drop_layers: the nodes that give them.
    """

    node: yaml.Node
    name: str
    method: Method
    base: str | None
    parts: list[dict[str, Any]]
    settings: Settings
    seed: Any
    out_dtype: DType | ScaledForm | None
    tokenizer: DraftTokenizer | None
    chat_template: yaml.Node | None
    expert_alignment: yaml.Node | None
    router: yaml.Node | None
    keep_experts: yaml.Node | None
    drop_layers: yaml.Node | None

    @property
    def specs(self) -> list[str]:
        """The paths or names of the models that it merges, its bases included."""
        found = [source["spec"] for part in self.parts for source in part["sources"]]
        return [*found, *(base for base in (self.base, *(part["base"] for part in self.parts)) if base)]


class Drafts(SettingsReader):
    """Read documents. specs: the paths and names of models in the order in which they are met."""

    def __init__(self, where: str):
        super().__init__(where)
        self.specs: dict[str, int] = {}
        self.meant = MEANT | parameter_names() - IDLE.keys()

    def draft(self, node: yaml.Node) -> Draft | None:
        """Return what one document says; None if it has mistakes that leave nothing to go on with (see `problems`)."""
        given = self._top(node)
        method = self._method(node, given.get("merge_method"))
        base = self._spec(given["base_model"]) if "base_model" in given else None
        if base:
            self.specs.setdefault(base, len(self.specs))
        out_dtype = self._dtype(given, "out_dtype") or self._dtype(given, "dtype")
        template = self.text(given["chat_template"]) if "chat_template" in given else ""
        if template and (wrong := chat_template.mistake(template)):
            self.wrong(given["chat_template"], f"chat_template {wrong}")
        if "router" in given and (router := self.text(given["router"])) not in ("merge", "base"):
            self.wrong(given["router"], f"router {router!r} must be merge or base{nearest(router, ('merge', 'base'))}")
        kinds: list[str] = [kind for kind in ("models", "slices", "modules") if kind in given]
        if len(kinds) != 1:
            named = ", ".join(kinds) or "none of them"
            self.wrong(node, f"give one of models, slices and modules, not {named}")
            return None
        settings = self._settings(given.get("parameters"), method)
        if kinds == ["modules"]:
            parts, own = self._modules(given["modules"], method)
            settings = joined(own, settings)
        else:
            parts = self._parts(kinds[0], given[kinds[0]], method)
        seed = self._value(given["seed"], Parameter("seed", int)) if "seed" in given else 0
        name = self.text(given["name"]) if "name" in given else ""
        if method is None:
            return None
        tokenizer = read_tokenizer(self, given, self._spec)
        return Draft(
            node=node,
            name=name,
            method=method,
            base=base,
            parts=parts,
            settings=settings,
            seed=seed,
            out_dtype=out_dtype,
            tokenizer=tokenizer,
            chat_template=given.get("chat_template"),
            expert_alignment=given.get("expert_alignment"),
            router=given.get("router"),
            keep_experts=given.get("keep_experts"),
            drop_layers=given.get("drop_layers"),
        )

    def _top(self, node: yaml.Node) -> dict[str, yaml.Node]:
        given = {}
        for name, (key, value) in self.mapping(node, "a recipe").items():
            if name in KEYS:
                given[name] = value
            elif getattr(value, "again", False):  # a key that only holds an anchor for aliases
                continue
            elif name in _FLAGS:
                self.wrong(key, f"{name!r} is not a key of recipes but a flag: pass --{name} beside the recipe")
            elif nearest(name, KEYS) and name not in CARD:
                self.wrong(key, f"unknown key {name!r}{nearest(name, KEYS)}")
            else:
                belongs = "; it belongs under parameters" if name in parameter_names() else ""
                self.note(key, f"{name!r} has no effect, here or in mergekit{belongs}")
        return {name: value for name, value in given.items() if not is_null(value)}

    def _method(self, node: yaml.Node, value: yaml.Node | None) -> Method | None:
        """Return the method; None if it is missing or unknown. The rest is read all the same, to find its mistakes."""
        if value is None:
            self.wrong(node, "merge_method is missing")
            return None
        name = self.text(value)
        method = find(name) or find(name.lower())
        if method is None and name:
            known = nearest(name.lower(), names()) or f"; there are {', '.join(names())}"
            self.wrong(value, f"unknown merge_method {shown(name)}{known}")
        return method

    def _dtype(self, given: Mapping[str, yaml.Node], key: str) -> DType | ScaledForm | None:
        if key not in given:
            return None
        name = self.text(given[key]).removeprefix("torch.")
        name = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}.get(name, name)
        if name not in OUT_DTYPES:
            self.wrong(given[key], f"{key} {name!r} must be one of {', '.join(OUT_DTYPES)}{nearest(name, OUT_DTYPES)}")
        return OUT_DTYPES.get(name)

    def _modules(self, node: yaml.Node, method: Method | None) -> tuple[list[dict[str, Any]], Settings]:
        """Return the slices of all modules, and the parameters of a module that is the only one."""
        modules = self.mapping(node, "modules")
        if not modules:
            self.wrong(node, "modules is empty")
        parts: list[dict[str, Any]] = []
        for name, (key, content) in modules.items():
            inner = self.known(content, ("models", "slices", "parameters"), "a module")
            kinds: list[str] = [kind for kind in ("models", "slices") if kind in inner]
            settings = self._settings(inner.get("parameters"), method)
            if len(kinds) != 1:
                self.wrong(content, f"module {name!r} must have models or slices")
                continue
            found = self._parts(kinds[0], inner[kinds[0]], method)
            if len(modules) == 1:
                self.note(key, "the only module merges all tensors, whatever its name is")
                return found, settings
            own = {"module": name, "at": self._at(key)}
            parts += [{**part, **own, "settings": joined(part["settings"], settings)} for part in found]
        return parts, {}

    def _parts(self, kind: str, node: yaml.Node, method: Method | None) -> list[dict[str, Any]]:
        return self._models(node, method) if kind == "models" else self._slices(node, method)

    def _models(self, node: yaml.Node, method: Method | None) -> list[dict[str, Any]]:
        sources = [self._source(item, ("model", "parameters"), method) for item in self.list(node, "models")]
        if not sources and isinstance(node, yaml.SequenceNode):
            self.wrong(node, "models is empty")
        return [{"node": node, "sources": sources, "settings": {}, "base": None}]

    def _slices(self, node: yaml.Node, method: Method | None) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for item in self.list(node, "slices"):
            inner = self.known(item, ("sources", "parameters", "base_model", "residual_weight"), "a slice")
            if not getattr(inner.get("sources"), "value", None):
                self.wrong(item, "sources, a list of models with a layer_range, is missing or empty")
            sources = [
                self._source(source, ("model", "layer_range", "parameters"), method)
                for source in (self.list(inner["sources"], "sources") if "sources" in inner else ())
            ]
            base = self._spec(inner["base_model"]) if "base_model" in inner else None
            if base:
                self.specs.setdefault(base, len(self.specs))
            if "residual_weight" in inner:
                self.note(inner["residual_weight"], "'residual_weight' has no effect, here or in mergekit")
            settings = self._settings(inner.get("parameters"), method)
            found.append({"node": item, "sources": sources, "settings": settings, "base": base})
        if not found:
            self.wrong(node, "slices is empty")
        for number, part in enumerate(found):
            if any(source["layers"] == NO_LAYERS for source in part["sources"]) and (0 < number < len(found) - 1):
                self.wrong(part["node"], "layer_range [0, 0] takes no layers, which only a first or a last slice can do")
        if found and all(source["layers"] == NO_LAYERS for part in found for source in part["sources"]):
            self.wrong(node, "slices take no layers")
        return found

    def _source(self, node: yaml.Node, keys: tuple[str, ...], method: Method | None) -> dict[str, Any]:
        if isinstance(node, yaml.ScalarNode) and node.value.startswith("model:"):
            self.wrong(node, f"write model: {node.value[6:]} with a space after the colon")
        if isinstance(node, yaml.ScalarNode) and "layer_range" not in keys:
            inner: dict[str, yaml.Node] = {"model": node}
        else:
            inner = self.known(node, keys, "a model")
        if "model" not in inner:
            self.wrong(node, "model, the path of a checkpoint, is missing")
        spec = self._spec(inner["model"]) if "model" in inner else ""
        self.specs.setdefault(spec, len(self.specs))
        layers = self._range(inner["layer_range"]) if "layer_range" in inner else None
        if "layer_range" in keys and layers is None and "layer_range" not in inner:
            self.wrong(node, "layer_range is missing: [first, end], where end is not included")
        settings = self._settings(inner.get("parameters"), method, of_model=True)
        return {"node": node, "spec": spec, "layers": layers, "settings": settings}

    def _spec(self, node: yaml.Node) -> str:
        """Return the path or name of a model: text, or a mapping as mergekit writes it, with path, revision and lora."""
        if isinstance(node, yaml.ScalarNode):
            text = self.text(node)
            path, _, revision = text.rpartition("@")
            return self._revised(node, path, revision) if path and revision else text
        inner = self.known(node, ("model", "path", "revision", "lora", "override_architecture"), "a model")
        given = [inner[key] for key in ("model", "path") if key in inner]
        if len(given) != 1:
            self.wrong(node, "a model that is a mapping must have one of path and model, the path of a checkpoint")
            return ""
        if "override_architecture" in inner:
            self.note(inner["override_architecture"], "'override_architecture' has no effect: tensors are merged by name")
        spec = self._spec(given[0])
        if "revision" in inner:
            spec = self._revised(inner["revision"], spec, self.text(inner["revision"]))
        return f"{spec}+{self._spec(inner['lora'])}" if "lora" in inner else spec

    def _revised(self, node: yaml.Node, path: str, revision: str) -> str:
        """Return "name@revision" for a model on a hub; the path alone, and a note, for a file or folder.

        What has a / behind the @ is taken for a path, and never for the folder before the @.
        """
        both = f"{path}@{revision}"
        there = os.path.lexists(os.path.expanduser(path)) and "/" not in revision
        if os.path.lexists(os.path.expanduser(both)) or not there:
            return both
        self.note(node, f"the revision {revision!r} has no effect: {path} is no name on a hub, but a file or folder")
        return path

    def _range(self, node: yaml.Node) -> tuple[int, int] | None:
        values = [self.scalar(item) for item in node.value] if isinstance(node, yaml.SequenceNode) else []
        values = [int(value) if isinstance(value, str) and value.isdecimal() else value for value in values]
        if len(values) == 2 and all(type(value) is int for value in values):
            first, end = int(values[0]), int(values[1])
            if 0 <= first < end or (first, end) == NO_LAYERS:
                return first, end
        self.wrong(node, "layer_range must be two whole numbers, [first, end], where end is larger and not included")
        return None
