"""Find the free values of a recipe, and make the recipe of any choice of them.

Anywhere in a recipe a value may be `{search: [low, high]}` or `{choose: [...]}`, or `low:high:step`, which is short for a
search with a step. Each becomes one gene, or a gene for each layer or group of layers (`by: layer`, `by: 4`). Weights of a
list of models may be `{simplex: N}`: a gene each, which vary together (simplex.py). The recipe of a candidate is the recipe
with values in these places, so it is an ordinary recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import yaml

from ..errors import ConfigError
from ..recipe.config_file import SECTIONS
from ..recipe.recipe import Recipe
from ..recipe.yaml_nodes import is_null
from ..recipe.yaml_read import parse_documents
from .free import Free, FreeValues, distinct
from .gene import Gene, Values


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
        self._nodes, self._where = [node for node in nodes if not is_null(node)], where
        reader = FreeValues(where)
        for node in self._nodes:
            reader.visit(node, ())
        reader.check_simplexes()
        if not reader.found and not reader.problems:
            reader.problems.append(
                f"{where}: no value is free; write {{search: [low, high]}} or {{choose: [...]}} in place of a value"
            )
        if reader.problems:
            raise ConfigError(reader.problems)
        self._free = distinct(reader.found)
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

    def _filled(self, value: Callable[[Free], Any]) -> list[yaml.Node]:
        made = {id(one.node): as_node(value(one), one.node) for one in self._free}
        return [_replaced(node, made) for node in self._nodes]


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
