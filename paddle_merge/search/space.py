"""Find the free values of a recipe, and make the recipe of any choice of them.

Anywhere in a recipe a value may be `{search: [low, high]}` or `{choose: [...]}`, or `low:high:step`, which is short for a
search with a step. Each becomes one gene, or a gene for each layer or group of layers (`by: layer`, `by: 4`). The recipe of
a candidate is the recipe with values in these places, so it is an ordinary recipe.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import yaml

from ..parsing import shown
from ..recipe.recipe import Recipe, Value
from ..recipe.yaml_nodes import Nodes, is_null
from ..recipe.yaml_read import parse_documents
from .ranges import read_range, spaced

DIGITS = 6  # significant digits of a number that is searched, so that recipes stay readable
MAX_LAYERS = 100_000
Values = tuple[Value, ...]  # one per gene


@dataclass(frozen=True)
class Gene:
    """One number or choice that a search varies.

    name: for people, such as "./math: weight, layer 3". low, high: the bounds of a number, both included. integer: whether
    only whole numbers are meant. log: whether the number's logarithm varies evenly. choices: the values of a choice, and
    then low, high, integer and log mean nothing. start: where a search begins. group: name without the layer. layer: the
    layer, or group of layers, from 0; None if there is one value for all. step: the distance of the only values that a
    number may have; 0: it may have any. likely: the probability with which a choice is its start when a search begins; None:
    all choices are equally likely. needs: the place of a choice among the genes; where that is False, this gene has no
    effect.
    """

    name: str
    group: str
    low: float = 0.0
    high: float = 1.0
    integer: bool = False
    log: bool = False
    choices: tuple[Value, ...] = ()
    start: Value = 0.5
    layer: int | None = None
    step: float = 0.0

    @property
    def points(self) -> tuple[Value, ...]:
        """All values, if these can be listed: of a choice, of numbers with a step, and of whole numbers; else none."""
        step = self.step or (1.0 if self.integer and not self.log else 0.0)
        if self.choices or not step:
            return self.choices
        return tuple(int(number) if self.integer else number for number in spaced(self.low, self.high, step))

    likely: float | None = None
    needs: int | None = None

    def value(self, unit: float) -> Value:
        """Return the value at a place between 0 and 1: of a choice, each has an equal share."""
        unit = min(max(unit, 0.0), 1.0)
        if self.choices:
            return self.choices[min(int(unit * len(self.choices)), len(self.choices) - 1)]
        if self.step:
            points = self.points
            return points[min(int(unit * len(points)), len(points) - 1)]
        if self.integer and not self.log:
            return min(int(self.low + unit * (self.high - self.low + 1)), int(self.high))
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        number = low + unit * (high - low)
        number = math.exp(number) if self.log else number
        if self.integer:
            return min(max(round(number), int(self.low)), int(self.high))
        return min(max(float(f"{number:.{DIGITS}g}"), self.low), self.high)

    def place(self, value: Value) -> int:
        """Return the place of a choice among all; 1 and True are two choices."""
        return next(place for place, one in enumerate(self.choices) if type(one) is type(value) and one == value)

    def unit(self, value: Value) -> float:
        """Return a place between 0 and 1 at which `value` is the value."""
        if self.choices:
            return (self.place(value) + 0.5) / len(self.choices)
        number = float(value)
        if self.step:
            return (round((number - self.low) / self.step) + 0.5) / len(self.points)
        if self.integer and not self.log:
            return (number - self.low + 0.5) / (self.high - self.low + 1)
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        number = math.log(number) if self.log else number
        return (number - low) / (high - low)

    def admits(self, value: Value) -> bool:
        """Return whether a value is one that the gene can have."""
        if self.choices:
            return any(type(one) is type(value) and one == value for one in self.choices)
        if isinstance(value, bool | str) or (self.integer and value != int(value)):
            return False
        return value in self.points if self.step else self.low <= value <= self.high


def settled(genes: Sequence[Gene], values: Values) -> Values:
    """Return values in which genes that have no effect are at their start, so that equal candidates are equal."""
    return tuple(
        value if gene.needs is None or values[gene.needs] is not False else gene.start
        for gene, value in zip(genes, values, strict=True)
    )


class Space(Protocol):
    """A set of candidates: values for each gene, and the recipe that they make."""

    genes: tuple[Gene, ...]

    def recipe(self, values: Values) -> Recipe:
        """Return the recipe of a candidate. Raises ConfigError."""


class RecipeSpace:
    """The candidates of a recipe with free values.

    nodes: the recipe's YAML documents, as yaml_nodes.documents returns them. where: what messages call the text. layers:
    returns the number of layers of a recipe's output, which `by` needs; it is called at most once, with the recipe in which
    every free value is at its start.
    depth: what it returned; 0 if it wasn't called.
    """

    def __init__(self, nodes: Sequence[yaml.Node], where: str, layers: Callable[[Recipe], int]):
        """Raises ConfigError listing every mistake, by line and column."""
        from ..errors import ConfigError

        self._nodes, self._where = [node for node in nodes if not is_null(node)], where
        reader = _FreeValues(where)
        for node in self._nodes:
            reader.visit(node, ())
        if not reader.found and not reader.problems:
            reader.problems.append(
                f"{where}: no value is free; write {{search: [low, high]}} or {{choose: [...]}} in place of a value"
            )
        if reader.problems:
            raise ConfigError(reader.problems)
        self._free = reader.found
        starts = {id(one.node): one.gene.start for one in self._free}
        first = parse_documents(self._filled(lambda one: starts[id(one.node)]), where).recipe
        self.depth = layers(first) if any(one.by is not None and one.depth is None for one in self._free) else 0
        self._depths = [self.depth if one.depth is None else one.depth for one in self._free]
        self._counts = [one.count(its) for one, its in zip(self._free, self._depths, strict=True)]
        few = [(one, its) for one, its in zip(self._free, self._depths, strict=True) if type(one.by) is int and one.by > its]
        if few:
            raise ConfigError([f"{one.at}: by: {one.by} groups of {its} layers; give at most {its}" for one, its in few])
        self.genes: tuple[Gene, ...] = tuple(
            gene for one, count in zip(self._free, self._counts, strict=True) for gene in one.genes(count)
        )
        # Where each gene stands in the text: file, line and column.
        self.places = tuple(one.at for one, count in zip(self._free, self._counts, strict=True) for _ in range(count))

    def recipe(self, values: Values) -> Recipe:
        """Return the recipe of a candidate. Raises ConfigError."""
        return parse_documents(self.filled(values), self._where).recipe

    def filled(self, values: Values) -> list[yaml.Node]:
        """Return the documents of a candidate."""
        of: dict[int, Any] = {}
        place = 0
        for one, depth, count in zip(self._free, self._depths, self._counts, strict=True):
            its = list(values[place : place + count])
            place += count
            of[id(one.node)] = its[0] if one.by is None else [its[layer * count // depth] for layer in range(depth)]
        return self._filled(lambda one: of[id(one.node)])

    def _filled(self, value: Callable[[_Free], Any]) -> list[yaml.Node]:
        made = {id(one.node): as_node(value(one), one.node) for one in self._free}
        return [_replaced(node, made) for node in self._nodes]


@dataclass(frozen=True)
class _Free:
    """A free value: its node and place in the text, its gene if there were one for all layers, and what there is one for.

    depth: the number of layers of the slice in which it stands; None if it stands in none.
    """

    node: yaml.Node
    at: str
    gene: Gene
    by: str | int | None
    depth: int | None

    def count(self, depth: int) -> int:
        """Return how many genes it has. depth: the number of layers."""
        return 1 if self.by is None else depth if self.by == "layer" else min(int(self.by), depth)

    def genes(self, count: int) -> list[Gene]:
        if self.by is None:
            return [self.gene]
        word = "layer" if self.by == "layer" else "group"
        return [
            Gene(**{**vars(self.gene), "name": f"{self.gene.group}, {word} {number}", "layer": number})
            for number in range(count)
        ]


class _FreeValues(Nodes):
    """Find the free values of a document. found: in the order of the text."""

    def __init__(self, where: str):
        super().__init__(where)
        self.found: list[_Free] = []
        self._seen: set[int] = set()
        self._depth: int | None = None

    def visit(self, node: yaml.Node, path: tuple[str, ...]) -> None:
        """path: what stands above: keys, and models and filters in place of their places in lists."""
        if isinstance(node, yaml.SequenceNode):
            for number, item in enumerate(node.value):
                self.visit(item, (*path, _title(item) or f"#{number + 1}"))
        elif isinstance(node, yaml.MappingNode):
            keys = {key.value: value for key, value in node.value if isinstance(key, yaml.ScalarNode)}
            if path and {"search", "choose"} & keys.keys():
                if id(node) not in self._seen:  # an alias repeats it: one gene, several places
                    self._seen.add(id(node))
                    self._free(node, path)
                return
            outside, self._depth = self._depth, self._depth or _layers(keys.get("sources"))
            for key, value in node.value:
                self.visit(value, (*path, str(key.value)))
            self._depth = outside
        elif path and read_range(node) is not None and id(node) not in self._seen:
            self._seen.add(id(node))
            gene = self._number({"search": node}, _named(path))
            self.found += [_Free(node, self._at(node), gene, None, self._depth)] if gene is not None else []

    def _free(self, node: yaml.Node, path: tuple[str, ...]) -> None:
        before = len(self.problems)
        given = self.known(node, ("search", "choose", "by", "start", "step", "log", "integer"), "a free value")
        if {"search", "choose"} <= given.keys():
            self.wrong(node, "a free value has one of search and choose, not both")
        if not {"search", "choose"} & given.keys():
            self.wrong(node, "a free value needs bounds: search: [low, high]")
        by = self.scalar(given["by"]) if "by" in given else None
        if by is not None and by != "layer" and (type(by) is not int or not 1 <= by <= MAX_LAYERS):
            self.wrong(given["by"], f"by must be layer, or a number of groups of layers, not {shown(by)}")
        if len(self.problems) > before:
            return
        name = _named(path)
        gene = self._choice(given, name) if "choose" in given else self._number(given, name)
        if gene is None:
            return
        if "start" in given:
            start = self.scalar(given["start"])
            if not gene.admits(start):
                steps = f" in steps of {gene.step:g}" if gene.step else ""
                kind = "one of the choices" if gene.choices else f"within {gene.low:g} and {gene.high:g}{steps}"
                self.wrong(given["start"], f"start must be {kind}, not {shown(start)}")
            likely = 0.5 + 0.5 / len(gene.choices) if gene.choices else None
            gene = Gene(**{**vars(gene), "start": start, "likely": likely})
        if len(self.problems) == before:
            self.found.append(_Free(node, self._at(node), gene, by, self._depth))  # type: ignore[arg-type]

    def _choice(self, given: dict[str, yaml.Node], name: str) -> Gene | None:
        choices = [self.scalar(item) for item in self.list(given["choose"], "choose")]
        if len(choices) < 2:
            self.wrong(given["choose"], "choose needs at least two values")
            return None
        if len({(type(one), one) for one in choices}) < len(choices):
            self.wrong(given["choose"], "choose has a value twice")
        for key in ("step", "log", "integer"):
            if key in given:
                self.wrong(given[key], f"{key} is for search: [low, high]")
        return Gene(name, name, choices=tuple(choices), start=choices[0])

    def _number(self, given: dict[str, yaml.Node], name: str) -> Gene | None:
        spread = read_range(given["search"])
        bounds = spread[:2] if spread else [self.scalar(item) for item in self.list(given["search"], "search")]
        if len(bounds) != 2 or not all(map(_is_number, bounds)):
            self.wrong(given["search"], "search must be two numbers, [low, high]")
            return None
        low, high = (float(one) for one in bounds)
        step = spread[2] if spread else self.scalar(given["step"]) if "step" in given else 0.0
        if spread and "step" in given:
            self.wrong(given["step"], "the range has a step already")
            return None
        if not _is_number(step):
            self.wrong(given["step"], f"step must be a number, not {shown(step)}")
            return None
        integer, log = (self._flag(given, key) for key in ("integer", "log"))
        if low >= high:
            self.wrong(given["search"], f"search: [{low:g}, {high:g}]: low must be below high")
            return None
        if log and low <= 0:
            self.wrong(given["search"], f"log needs a lower bound above 0, not {low:g}")
            return None
        if integer and (low != int(low) or high != int(high)):
            self.wrong(given["search"], "integer needs whole numbers as bounds")
            return None
        if "step" in given or spread:
            if log or (integer and step != int(step)):
                self.wrong(
                    given.get("step", given["search"]), f"step {step:g} and {'log' if log else 'integer'} exclude each other"
                )
                return None
            try:
                spaced(low, high, float(step))
            except ValueError as error:
                self.wrong(given.get("step", given["search"]), str(error))
                return None
        gene = Gene(name, name, low, high, integer, log, step=float(step))
        return Gene(**{**vars(gene), "start": gene.value(0.5)})

    def _flag(self, given: dict[str, yaml.Node], key: str) -> bool:
        value = self.scalar(given[key]) if key in given else False
        if not isinstance(value, bool):
            self.wrong(given[key], f"{key} must be true or false, not {shown(value)}")
        return value is True


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool | str) and math.isfinite(value)


def has_free_values(nodes: Sequence[yaml.Node]) -> bool:
    """Return whether documents have free values, or what was meant as one."""
    reader = _FreeValues("")
    for node in nodes:
        reader.visit(node, ())
    return bool(reader.found or reader.problems)


SECTIONS = ("search", "sweep", "evaluate")  # keys of a document that are no part of its recipe


def without_sections(nodes: Sequence[yaml.Node]) -> list[yaml.Node]:
    """Return documents without the sections that say how to search."""
    found = []
    for node in nodes:
        if isinstance(node, yaml.MappingNode):
            pairs = [pair for pair in node.value if not (isinstance(pair[0], yaml.ScalarNode) and pair[0].value in SECTIONS)]
            node = yaml.MappingNode(node.tag, pairs, node.start_mark, node.end_mark, node.flow_style)
            if not pairs:
                continue
        found.append(node)
    return found


def _layers(sources: yaml.Node | None) -> int | None:
    """Return how many layers the sources of a slice have; None if that isn't fixed."""
    first = sources.value[0] if isinstance(sources, yaml.SequenceNode) and sources.value else None
    for key, value in first.value if isinstance(first, yaml.MappingNode) else ():
        if getattr(key, "value", "") == "layer_range" and isinstance(value, yaml.SequenceNode):
            ends = [item.value for item in value.value if isinstance(item, yaml.ScalarNode)]
            if len(ends) == 2 and all(str(end).isdecimal() for end in ends):
                return int(ends[1]) - int(ends[0])
    return None


def _title(node: yaml.Node) -> str:
    """Return what an item of a list is called: its model, or its filter."""
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        if getattr(key, "value", "") in ("model", "filter") and isinstance(value, yaml.ScalarNode):
            return str(value.value)
    return str(node.value) if isinstance(node, yaml.ScalarNode) else ""


def _named(path: tuple[str, ...]) -> str:
    """Return a gene's name for people: "./math: weight", "weight [mlp]", "merge_method"."""
    words = [word for word in path if word not in ("models", "slices", "sources", "modules", "parameters", "value")]
    keys = [place for place, word in enumerate(path) if place and path[place - 1] == "parameters"]
    if not keys:
        return " ".join(words)
    key = keys[-1]
    before = [word for word in path[:key] if word in words]
    inside = [word for word in path[key + 1 :] if word in words]
    name = path[key] + (f" [{', '.join(inside)}]" if inside else "")
    return f"{' '.join(before)}: {name}" if before else name


_DUMPER = yaml.representer.SafeRepresenter()


def as_node(value: Any, like: yaml.Node) -> yaml.Node:
    """Return the node of a value, or of lists and mappings of values, at the place of another."""
    if isinstance(value, dict):
        pairs = [(as_node(key, like), as_node(one, like)) for key, one in value.items()]
        return yaml.MappingNode("tag:yaml.org,2002:map", pairs, like.start_mark, like.end_mark, True)
    if isinstance(value, list):
        items = [as_node(one, like) for one in value]
        return yaml.SequenceNode("tag:yaml.org,2002:seq", items, like.start_mark, like.end_mark, True)
    made: yaml.Node = _DUMPER.represent_data(value)
    return yaml.ScalarNode(made.tag, made.value, like.start_mark, like.end_mark)


def _replaced(node: yaml.Node, made: dict[int, yaml.Node]) -> yaml.Node:
    """Return a node in which others stand in place of some, which are given by their ids."""
    if id(node) in made:
        return made[id(node)]
    if isinstance(node, yaml.SequenceNode):
        items = [_replaced(item, made) for item in node.value]
        if all(new is old for new, old in zip(items, node.value, strict=True)):
            return node
        return yaml.SequenceNode(node.tag, items, node.start_mark, node.end_mark, node.flow_style)
    if isinstance(node, yaml.MappingNode):
        pairs = [(key, _replaced(value, made)) for key, value in node.value]
        if all(new is old for (_, new), (_, old) in zip(pairs, node.value, strict=True)):
            return node
        return yaml.MappingNode(node.tag, pairs, node.start_mark, node.end_mark, node.flow_style)
    return node
