"""Read `paths` of a search file, and put the slices of a path in its place. paths.py says what they mean."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import yaml

from ..errors import ConfigError
from ..parsing import shown
from ..recipe.yaml_documents import NO_LAYERS
from ..recipe.yaml_nodes import Nodes
from ..records import record
from .ranges import is_number
from .space import as_node

KEY = "paths"
KEYS = ("models", "repeats", "scales")
MOST = 10_000  # layers that a path may be made of
Path = Sequence[
    tuple[int, int, float]
]  # of each layer: the model's number in Paths.models, its own, the factor on the stream


@record(frozen=True)
class Paths:
    """What `paths` asks for.

    scales: bounds of the factors; None: there are none. document: the number of the document that has `paths`. at: the file,
    line and column of its value. notes: sentences on what has no effect in it.
    """

    models: tuple[str, ...]
    repeats: int = 1
    scales: tuple[float, float] | None = None
    document: int = 0
    at: str = ""
    notes: tuple[str, ...] = ()


def read_paths(nodes: Sequence[yaml.Node], where: str) -> Paths:
    """Return what `paths` of a document asks for. Raises ConfigError, by line and column."""
    reader = _Reader(where)
    place, *others = [place for place, node in enumerate(nodes) if has_paths([node])]
    for other in others:
        reader.wrong(_value(nodes[other]), "a second document with paths")
    unnamed = [number for number, node in enumerate(nodes) if not _text(node, "name")]
    if place != (unnamed or [len(nodes) - 1])[0]:  # the merge that a recipe asks for
        reader.wrong(
            _value(nodes[place]), "paths are of the merge that a file is for: the last one, or the one without a name"
        )
    paths = reader.paths(place, nodes[place])
    if reader.problems:
        raise ConfigError(list(dict.fromkeys(reader.problems)))
    return dataclasses.replace(paths, notes=tuple(reader.notes))


def _value(node: yaml.Node) -> yaml.Node:
    """Return what a document has as `paths`."""
    found: yaml.Node = next(pair[1] for pair in node.value if _key(pair) == KEY)
    return found


class _Reader(Nodes):
    def paths(self, place: int, document: yaml.Node) -> Paths:
        node = _value(document)
        given = self.known(node, KEYS, KEY)
        for pair in document.value:
            if _key(pair) in ("models", "slices", "modules", "parameters"):
                self.wrong(pair[0], f"give one of paths and {_key(pair)}, not both")
            if _key(pair) == "merge_method" and pair[1].value != "passthrough":
                self.wrong(pair[1], f"paths are of passthrough, not of {shown(pair[1].value)}")
        models = [self.text(one) for one in self.list(given["models"], "models")] if "models" in given else []
        if "models" not in given:
            self.wrong(node, "paths needs models, of whose layers paths are made: paths: {models: [./a, ./b]}")
        elif not models and not self.problems:
            self.wrong(given["models"], "models is empty")
        for name in {name for name in models if models.count(name) > 1}:
            self.wrong(given["models"], f"{name} stands twice; repeats: 2 offers all layers twice")
        repeats = self.scalar(given["repeats"]) if "repeats" in given else 1
        if type(repeats) is not int or not 1 <= repeats <= MOST:
            self.wrong(given["repeats"], f"repeats must be a whole number of at least 1, not {shown(repeats)}")
            repeats = 1
        scales = self._scales(given["scales"]) if "scales" in given else None
        return Paths(tuple(models), repeats, scales, place, self._at(node))

    def _scales(self, node: yaml.Node) -> tuple[float, float] | None:
        bounds = [self.scalar(item) for item in self.list(node, "scales")]
        if len(bounds) != 2 or not all(map(is_number, bounds)):
            self.wrong(node, "scales must be two numbers, [low, high]")
            return None
        low, high = (float(one) for one in bounds)
        if low >= high:
            self.wrong(node, f"scales: [{low:g}, {high:g}]: low must be below high")
        if low <= 0:
            self.wrong(node, f"scales must be above 0, and not {low:g}: a norm doesn't cancel a factor that isn't positive")
        if not low <= 1 <= high:
            self.wrong(node, f"scales: [{low:g}, {high:g}] must include 1, with which a model's own path is what it was")
        return low, high


def with_slices(nodes: Sequence[yaml.Node], paths: Paths, path: Path, filters: Sequence[str]) -> list[yaml.Node]:
    """Return documents with the slices of a path in place of `paths`, or of another path's slices.

    filters: of the tensors into which factors on the stream are folded; none: there are no factors.
    """
    node, models = nodes[paths.document], paths.models
    slices = [_slice(models[model], first, end, factor, filters) for model, first, end, factor in _runs(path)]
    edge = {"sources": [{"model": models[0], "layer_range": list(NO_LAYERS)}]}
    slices = [*([edge] if path[0][0] else []), *slices, *([edge] if path[-1][0] else [])]
    pairs = [pair for pair in node.value if _key(pair) not in (KEY, "slices")]
    given = {_key(pair) for pair in pairs}
    added: dict[str, Any] = {} if "merge_method" in given else {"merge_method": "passthrough"}
    added |= {"base_model": base} if "base_model" not in given and (base := _base(nodes, models[0])) else {}
    pairs += [(as_node(key, node), as_node(value, node)) for key, value in {**added, "slices": slices}.items()]
    made = yaml.MappingNode(node.tag, pairs, node.start_mark, node.end_mark)
    return [made if place == paths.document else one for place, one in enumerate(nodes)]


def _base(nodes: Sequence[yaml.Node], model: str) -> str:
    """Return the model that gives config.json and the tokenizer: `model`, or its base if the file merges it."""
    for _ in nodes:
        if (document := _named(nodes, model)) is None:
            return model
        model = _text(document, "base_model")
    return ""


def _named(nodes: Sequence[yaml.Node], name: str) -> yaml.Node | None:
    """Return the document of a name; None if there is none."""
    return next((node for node in nodes if name and _text(node, "name") == name), None)


def has_paths(nodes: Sequence[yaml.Node]) -> bool:
    """Return whether a document has `paths`."""
    return any(_key(pair) == KEY for node in nodes if isinstance(node, yaml.MappingNode) for pair in node.value)


def without_paths(nodes: Sequence[yaml.Node]) -> list[yaml.Node]:
    """Return the documents that have no `paths`."""
    return [node for node in nodes if not has_paths([node])]


def _runs(path: Sequence[tuple[int, int, float]]) -> list[tuple[int, int, int, float]]:
    """Return (model, first layer, end, factor) of each run of consecutive layers of one model with one factor."""
    found = list[tuple[int, int, int, float]]()
    for model, layer, factor in path:
        if found and found[-1][0] == model and found[-1][2] == layer and found[-1][3] == factor:
            found[-1] = model, found[-1][1], layer + 1, factor
        else:
            found.append((model, layer, layer + 1, factor))
    return found


def _slice(model: str, first: int, end: int, factor: float, filters: Sequence[str]) -> dict[str, Any]:
    source: dict[str, Any] = {"model": model, "layer_range": [first, end]}
    if factor != 1 and filters:
        inverse = float(f"{1 / factor:.8g}")  # eight digits are finer than float32, and readable
        source["parameters"] = {"scale": [{"filter": one, "value": inverse} for one in filters]}
    return {"sources": [source]}


def _key(pair: tuple[yaml.Node, yaml.Node]) -> str:
    return str(pair[0].value) if isinstance(pair[0], yaml.ScalarNode) else ""


def _text(node: yaml.Node, key: str) -> str:
    """Return the text that a document has under a key; "" if it has none."""
    pairs = node.value if isinstance(node, yaml.MappingNode) else ()
    values = [pair[1] for pair in pairs if _key(pair) == key]
    return str(values[0].value) if values and isinstance(values[0], yaml.ScalarNode) else ""
