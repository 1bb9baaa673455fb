"""Search for a path of layers through several models: which layers follow one another, and factors on the stream between.

Akiba et al. (2025), Evolutionary Optimization of Model Merging Recipes, merging in the data flow space. In a document of the
search file, `paths` stands in place of `slices`:

    paths: {models: [./math, ./code], repeats: 3, scales: [0.5, 1.5]}

All layers of the first model, then all of the second, and so on, are offered `repeats` times in a row, and each is kept or
dropped. Where it is kept, the stream that enters it is multiplied by a number within `scales`; without `scales` it isn't.
What comes before and behind the layers (embeddings, the last norm, lm_head), config.json and the tokenizer are the first
model's. A model may be the name of another document of the file, whose own free values are searched together with the path.

A candidate is an ordinary recipe: slices of passthrough, in which factors on the stream are folded into the layers
(residual.py), so that its merge loads everywhere.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from ..checkpoints.config_json import read_config
from ..checkpoints.names import stacks
from ..checkpoints.tensors import Checkpoint
from ..errors import ConfigError
from ..parsing import shown
from ..recipe.recipe import Recipe
from ..recipe.yaml_documents import NO_LAYERS
from ..recipe.yaml_nodes import Nodes
from ..recipe.yaml_read import parse_documents
from .merger import Merger
from .residual import writers
from .space import Gene, RecipeSpace, Values, as_node, has_free_values

log = logging.getLogger("paddle_merge")
KEY = "paths"
KEYS = ("models", "repeats", "scales")
MOST = 10_000  # layers that a path may be made of
# In the first generation a candidate differs from the first model's path in about as many layers as FLIPS, and in a share of
# all layers that is between these bounds; the lower one is the paper's, whose search begins 2 sigma away from a change.
FLIPS, RARELY, OFTEN = 2, 0.023, 0.25


@dataclass(frozen=True)
class Paths:
    """What `paths` asks for. scales: bounds of the factors; None: there are none. at: file, line and column."""

    models: tuple[str, ...]
    repeats: int = 1
    scales: tuple[float, float] | None = None
    at: str = ""


@dataclass(frozen=True)
class Step:
    """A layer that a path may take. model: its number in Paths.models. layer: from 0. turn: which of the repeats it is."""

    model: int
    layer: int
    turn: int


class PathSpace:
    """The candidates of a search file in which a document has `paths`.

    first: the path of each model alone, the first model's before the others': they are in the first generation. baselines:
    the same with their names, to compare what is found with.
    """

    def __init__(self, nodes: Sequence[yaml.Node], where: str, merger: Merger):
        """nodes: documents without the sections of the search. Raises ConfigError by line and column, CheckpointError."""
        self._where = where
        place, self._paths = _read(nodes, where)
        self._nodes, self._place = list(nodes), place
        # One layer of each model, so that all are opened, and what is wrong with the rest of the file is found.
        every = [(model, 0, 1.0) for model in range(len(self._paths.models))]
        sample = self._with_slices(self._nodes, every, ())
        self._inner = RecipeSpace(sample, where, merger.layers) if has_free_values(sample) else None
        inner = self._inner.genes if self._inner is not None else ()
        start = tuple(gene.start for gene in inner)
        recipe = self._inner.recipe(start) if self._inner is not None else parse_documents(sample, where).recipe
        outputs = merger.outputs(recipe)
        held = [outputs[recipe.slices[model].inputs[0].number] for model in range(len(self._paths.models))]
        self._filters = self._fold(merger.config(recipe), held) if self._paths.scales is not None else ()
        depths = [max(stacks(one.tensors).values()) for one in held]
        self._steps = [
            Step(model, layer, turn)
            for turn in range(self._paths.repeats)
            for model, depth in enumerate(depths)
            for layer in range(depth)
        ]
        if len(self._steps) > MOST:
            raise ConfigError(
                f"{self._paths.at}: {len(self._steps):,} layers, of which a path may have {MOST:,}; repeat fewer"
            )
        self.genes: tuple[Gene, ...] = (*inner, *self._genes(len(inner)))
        self.baselines = [
            (f"the layers of {name}", (*start, *self._own(number))) for number, name in enumerate(self._paths.models)
        ]
        self.first = [values for _, values in self.baselines]
        filled = self._inner.filled(start) if self._inner is not None else self._nodes
        for sentence in merger.doubts(self._recipe(filled, self._shuffled())):
            log.warning("%s", sentence)

    def recipe(self, values: Values) -> Recipe:
        """Return the recipe of a candidate. Raises ConfigError if it keeps no layer."""
        count = len(self.genes) - len(self._steps) * (2 if self._paths.scales is not None else 1)
        nodes = self._inner.filled(values[:count]) if self._inner is not None else self._nodes
        keeps = values[count : count + len(self._steps)]
        scales = values[count + len(self._steps) :] or (1.0,) * len(self._steps)
        path, factor = list[tuple[int, int, float]](), 1.0
        for step, kept, scale in zip(self._steps, keeps, scales, strict=True):
            if kept:
                factor *= float(scale)
                path.append((step.model, step.layer, factor))
        if not path:
            raise ConfigError("the candidate keeps no layer")
        return self._recipe(nodes, path)

    def _recipe(self, nodes: Sequence[yaml.Node], path: Sequence[tuple[int, int, float]]) -> Recipe:
        return parse_documents(self._with_slices(nodes, path, self._filters), self._where).recipe

    def _genes(self, before: int) -> list[Gene]:
        """Return a choice for each layer, then the factor of each if they are searched. before: number of other genes."""
        paths, likely = self._paths, 1 - min(max(FLIPS / len(self._steps), RARELY), OFTEN)
        keeps, scales = [], []
        for place, step in enumerate(self._steps):
            turn = f", turn {step.turn}" if paths.repeats > 1 else ""
            group = f"{paths.models[step.model]}{turn}"
            name, own = f"{group}: layer {step.layer}", step.model == 0 and step.turn == 0
            keeps.append(Gene(name, group, choices=(True, False), start=own, layer=step.layer, likely=likely))
            if paths.scales is not None:
                low, high = paths.scales
                name, group, log_ = f"{group}: scale before layer {step.layer}", f"{group}: scale", True
                scales.append(Gene(name, group, low, high, log=log_, start=1.0, layer=step.layer, needs=before + place))
        return [*keeps, *scales]

    def _own(self, model: int) -> Values:
        """Return the values of the path that is a model's own layers."""
        keeps = tuple(step.model == model and step.turn == 0 for step in self._steps)
        return (*keeps, *((1.0,) * len(keeps) if self._paths.scales is not None else ()))

    def _shuffled(self) -> list[tuple[int, int, float]]:
        """Return a path in which every layer has moved by one, to learn what config.json can't say of such paths."""
        path = [(step.model, step.layer, 1.0) for step in self._steps]
        return [path[-1], *path]

    def _fold(self, config: Mapping[str, Any], held: Sequence[Checkpoint]) -> tuple[str, ...]:
        """Return the filters of the tensors into which factors are folded. Raises ConfigError if they can't be.

        config: counts for models that have none.
        """
        problems, found = list[str](), dict[tuple[str, ...], str]()
        for name, one in zip(self._paths.models, held, strict=True):
            own, depth = read_config(one.folder) or config, max(stacks(one.tensors).values())
            said = own.get("num_hidden_layers", depth) if one.path == name else depth
            try:
                found[writers(own, one.tensors)] = name
                if said != depth:
                    raise ValueError(f"it has {depth} layers, and {said} in config.json")
                if len(found) > 1:
                    raise ValueError(f"its layers are of another kind than those of {next(iter(found.values()))}")
            except ValueError as error:
                problems.append(
                    f"{self._paths.at}: scales of {name} can't be folded into its layers: {error}; leave scales out, or give"
                    " other models"
                )
        if problems:
            raise ConfigError(problems)
        return next(iter(found))

    def _base(self, nodes: Sequence[yaml.Node]) -> str:
        """Return the model that gives config.json and the tokenizer: the first one, or its base if the file merges it."""
        model = self._paths.models[0]
        for _ in nodes:
            if (document := _named(nodes, model)) is None:
                return model
            model = _text(document, "base_model")
        return ""

    def _with_slices(
        self, nodes: Sequence[yaml.Node], path: Sequence[tuple[int, int, float]], filters: Sequence[str]
    ) -> list[yaml.Node]:
        """Return documents with the slices of a path in place of `paths`.

        path: (model, layer, factor on the stream in it) of each layer.
        """
        node = nodes[self._place]
        models = self._paths.models
        slices = [_slice(models[model], first, end, factor, filters) for model, first, end, factor in _runs(path)]
        edge = {"sources": [{"model": models[0], "layer_range": list(NO_LAYERS)}]}
        slices = [*([edge] if path[0][0] else []), *slices, *([edge] if path[-1][0] else [])]
        pairs = [pair for pair in node.value if _key(pair) not in (KEY, "slices")]
        given = {_key(pair) for pair in pairs}
        added: dict[str, Any] = {} if "merge_method" in given else {"merge_method": "passthrough"}
        added |= {"base_model": base} if "base_model" not in given and (base := self._base(nodes)) else {}
        pairs += [(as_node(key, node), as_node(value, node)) for key, value in {**added, "slices": slices}.items()]
        made = yaml.MappingNode(node.tag, pairs, node.start_mark, node.end_mark)
        return [made if place == self._place else one for place, one in enumerate(nodes)]


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


def _read(nodes: Sequence[yaml.Node], where: str) -> tuple[int, Paths]:
    """Return the number of the document that has `paths`, and what it asks for. Raises ConfigError, by line and column."""
    reader = _Reader(where)
    found = [(place, node, value) for place, node in enumerate(nodes) for key, value in node.value if key.value == KEY]
    for _, _, value in found[1:]:
        reader.wrong(value, "a second document with paths")
    place, node, value = found[0]
    paths = reader.paths(node, value)
    if reader.problems:
        raise ConfigError(list(dict.fromkeys(reader.problems)))
    return place, paths


class _Reader(Nodes):
    def paths(self, document: yaml.Node, node: yaml.Node) -> Paths:
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
        return Paths(tuple(models), repeats, scales, self._at(node))

    def _scales(self, node: yaml.Node) -> tuple[float, float] | None:
        bounds = [self.scalar(item) for item in self.list(node, "scales")]
        if len(bounds) != 2 or any(isinstance(one, bool | str) or not math.isfinite(one) for one in bounds):
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
