"""Find the free values of a recipe's YAML documents, by line and column."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

import yaml

from ..parsing import shown
from ..recipe.yaml_nodes import Nodes
from ..records import record
from .gene import Gene
from .ranges import MOST_POINTS, is_number, read_range, spaced

MAX_LAYERS = 100_000


@record(frozen=True)
class Free:
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


class FreeValues(Nodes):
    """Find the free values of a document. found: in the order of the text."""

    def __init__(self, where: str):
        super().__init__(where)
        self.found: list[Free] = []
        self._seen: set[int] = set()
        self._depth: int | None = None
        self._list: tuple[yaml.Node, int] | None = None  # the list of models that is being visited, and the place in it
        self._uses: dict[str, dict[int, yaml.Node]] = {}  # simplex -> place in its list -> the weight there

    def note(self, node: yaml.Node, sentence: str) -> None:
        """Add a problem: a key without an effect is a mistake in a free value."""
        self.wrong(node, sentence)

    def visit(self, node: yaml.Node, path: tuple[str, ...]) -> None:
        """path: what stands above: keys, and models and filters in place of their places in lists."""
        if isinstance(node, yaml.SequenceNode):
            above, of_models = self._list, bool(path) and path[-1] in ("models", "sources")
            for number, item in enumerate(node.value):
                self._list = (node, number) if of_models else above
                self.visit(item, (*path, _title(item) or f"#{number + 1}"))
            self._list = above
        elif isinstance(node, yaml.MappingNode):
            keys = {key.value: value for key, value in node.value if isinstance(key, yaml.ScalarNode)}
            if path and {"search", "choose", "simplex"} & keys.keys():
                if "simplex" in keys and self._list is not None and "parameters" in path:
                    self._uses.setdefault(self._simplex_at(path), {})[self._list[1]] = node
                if id(node) not in self._seen:  # an alias repeats it: one gene, several places
                    self._seen.add(id(node))
                    (self._simplex if "simplex" in keys else self._free)(node, path)
                return
            outside, self._depth = self._depth, self._depth or _layers(keys.get("sources"))
            for key, value in node.value:
                self.visit(value, (*path, str(key.value)))
            self._depth = outside
        elif path and read_range(node) is not None and id(node) not in self._seen:
            self._seen.add(id(node))
            gene = self._number({"search": node}, _named(path))
            self.found += [Free(node, self._at(node), gene, None, self._depth)] if gene is not None else []

    def _simplex(self, node: yaml.Node, path: tuple[str, ...]) -> None:
        """Add a weight that adds up to 1 with those of the other models of its list, under the same key and filter."""
        given = self.known(node, ("simplex",), "a weight on a simplex")
        parts = self.scalar(given["simplex"]) if "simplex" in given else 0
        if type(parts) is not int or not 1 <= parts < MOST_POINTS:
            said = f"simplex must be into how many parts 1 is divided, a whole number from 1 to {MOST_POINTS - 1}"
            self.wrong(node, f"{said}, not {shown(parts)}")
        elif self._list is None or "parameters" not in path:
            self.wrong(node, "simplex is for the weight of each model of a list")
        else:
            at = self._simplex_at(path)
            gene = Gene(_named(path), _named(path), step=1.0 / parts, start=0.0, simplex=at)
            self.found.append(Free(node, self._at(node), gene, None, self._depth))

    def _simplex_at(self, path: tuple[str, ...]) -> str:
        """Return the place of the simplex to which a weight of the list of models belongs."""
        assert self._list is not None
        key = path[path.index("parameters") + 1 :]
        return f"{self._at(self._list[0])} ({' '.join(word for word in key if word != 'value')})"

    def check_simplexes(self) -> None:
        """Add a problem for each simplex of one weight, of different parts, or with an alias; begin the others at their
        first model."""
        simplexes = {id(one.node): one.gene.simplex for one in self.found if one.gene.simplex}
        for uses in self._uses.values():
            places = [id(node) for node in uses.values()]
            whole = [place for place, simplex in simplexes.items() if simplex == simplexes.get(places[0])]
            if places[0] in simplexes and sorted(places) != sorted(whole):
                self.wrong(
                    next(iter(uses.values())),
                    "an alias repeats one weight of this simplex, or takes some of another's, so the weights wouldn't add up"
                    " to 1; write {simplex: ...} out for each model",
                )
        for place, one in enumerate(self.found):
            its = [other for other in self.found if other.gene.simplex == one.gene.simplex]
            if not one.gene.simplex or one is not its[0]:
                continue
            if len(its) < 2:
                self.wrong(
                    one.node, "one weight alone is no simplex; write {simplex: ...} for each model's, with the same parts"
                )
            elif len({other.gene.step for other in its}) > 1:
                self.wrong(one.node, f"the simplex has different parts at {its[1].at}; give all of its weights the same")
            self.found[place] = dataclasses.replace(one, gene=dataclasses.replace(one.gene, start=1.0))

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
            self.found.append(Free(node, self._at(node), gene, by, self._depth))  # type: ignore[arg-type]

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
        if len(bounds) != 2 or not all(map(is_number, bounds)):
            self.wrong(given["search"], "search must be two numbers, [low, high]")
            return None
        low, high = (float(one) for one in bounds)
        step = spread[2] if spread else self.scalar(given["step"]) if "step" in given else 0.0
        if spread and "step" in given:
            self.wrong(given["step"], "the range has a step already")
            return None
        if not is_number(step):
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


def distinct(found: Sequence[Free]) -> list[Free]:
    """Return free values, those that share a name called by their lines and columns too: of one model in two documents."""
    counts = Counter(one.gene.name for one in found)
    return [_placed(one) if counts[one.gene.name] > 1 else one for one in found]


def _placed(one: Free) -> Free:
    mark = one.node.start_mark
    model, colon, key = one.gene.name.rpartition(": ")
    at = f"({mark.line + 1}:{mark.column + 1})"
    name = f"{model} {at}: {key}" if colon else f"{key} {at}"
    return dataclasses.replace(one, gene=dataclasses.replace(one.gene, name=name, group=name))


def has_free_values(nodes: Sequence[yaml.Node]) -> bool:
    """Return whether documents have free values, or what was meant as one."""
    reader = FreeValues("")
    for node in nodes:
        reader.visit(node, ())
    return bool(reader.found or reader.problems)


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
