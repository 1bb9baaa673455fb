"""Read the sections `search` and `evaluate` of a search file. Error messages name the line and column."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from ..backends import engine as engines
from ..errors import ConfigError
from ..parsing import nearest, shown
from ..recipe.config_file import SECTIONS
from ..recipe.recipe import Value
from ..recipe.yaml_nodes import Nodes
from .contract import DIRECTIONS
from .rule import Rule, parse_rule
from .spec import KINDS, OPTIMIZERS, Data, Evaluation, File, Race, SearchSpec, child

MOST = 10_000_000  # evaluations, samples, workers: a larger number is a mistake
NUMBERS = {  # key of `search` -> (least value, whether it is a whole number)
    "evaluations": (1, True),
    "population": (2, True),
    "sigma": (1e-6, False),
    "seed": (0, True),
    "workers": (1, True),
    "samples": (1, True),
    "finalists": (1, True),
}
_SEARCH_KEYS = (
    *("evaluate", "objectives", "data", "optimizer", "noisy", "race", "pick", "tensor_type", "device", "then"),
    *NUMBERS,
)
_THEN_KEYS = ("optimizer", "noisy", "race", *(name for name in NUMBERS if name != "workers"))


def search_spec(file: File) -> SearchSpec:
    """Return what the section `search` of a file asks for. Raises ConfigError listing every mistake."""
    reader = Sections(file.where)
    spec = reader.search(reader.section(file.nodes, "search"))
    reader.finish()
    assert spec is not None
    return spec


def evaluation_spec(file: File) -> tuple[Evaluation, Mapping[str, str], Data, int]:
    """Return the evaluator of a file with a section `evaluate`, its objectives, data and seed.

    A file with a section `search` or `sweep` has all of them there. Raises ConfigError listing every mistake.
    """
    reader = Sections(file.where)
    found = reader.scoring(file.nodes)
    reader.finish()
    assert found is not None
    return found


def has_section(nodes: Sequence[yaml.Node], name: str) -> bool:
    """Return whether one of the documents has a section."""
    tops = [node for node in nodes if isinstance(node, yaml.MappingNode)]
    return any(getattr(key, "value", "") == name for node in tops for key, _ in node.value)


class Sections(Nodes):
    """Read the sections of a file. Mistakes are in `problems`, until finish() raises them."""

    def finish(self) -> None:
        """Raise ConfigError if there are problems."""
        if self.problems:
            raise ConfigError(list(dict.fromkeys(self.problems)))

    def section(self, nodes: Sequence[yaml.Node], name: str) -> yaml.Node | None:
        """Return the node of a section; None, and a problem, if there is none or there are several."""
        found = [
            value
            for node in nodes
            for key, value in (node.value if isinstance(node, yaml.MappingNode) else ())
            if isinstance(key, yaml.ScalarNode) and key.value == name
        ]
        for other in found[1:]:
            self.wrong(other, f"a second section {name!r}")
        for unread in (child(node, "evaluate") for node in nodes) if found and name != "evaluate" else ():
            if unread is not None:
                self.wrong(unread, f"evaluate has no effect beside the section {name}, which has its own")
        if not found:
            others = [one for one in SECTIONS if one != name and has_section(nodes, one)]
            more = f"; this one has {others[0]!r}: python -m paddle_merge {SECTIONS[others[0]]} takes it" if others else ""
            self.problems.append(f"{self._where}: has no section {name!r}{more}")
        return found[0] if found else None

    def note(self, node: yaml.Node, sentence: str) -> None:
        """Add a problem: here a key without an effect is a mistake."""
        self.wrong(node, sentence)

    # --- the sections

    def search(self, node: yaml.Node | None) -> SearchSpec | None:
        if node is None:
            return None
        given = self.known(node, _SEARCH_KEYS, "search")
        evaluate = self._evaluation(node, given)
        objectives = self.objectives(node, given)
        options = self._how(given)
        options |= self.engine(given)
        options["pick"] = self.rule(given, objectives)
        later = self._how(self.known(given["then"], _THEN_KEYS, "then")) if "then" in given else None
        if self.problems or evaluate is None:
            return None
        spec = SearchSpec(evaluate=evaluate, objectives=objectives, data=self.data(given), **options)
        if later is None:
            return spec
        return dataclasses.replace(spec, then=dataclasses.replace(spec, **{"optimizer": None, **later}))

    def _how(self, given: Mapping[str, yaml.Node]) -> dict[str, Any]:
        """Return the fields of SearchSpec that say how candidates are searched."""
        optimizer = self.text(given["optimizer"]) if "optimizer" in given else None
        if optimizer is not None and optimizer not in OPTIMIZERS:
            known = ", ".join(OPTIMIZERS)
            self.wrong(
                given["optimizer"],
                f"unknown optimizer {shown(optimizer)}{nearest(optimizer, OPTIMIZERS)}; there are {known}",
            )
        options: dict[str, Any] = {
            name: self.number(given[name], name, least, whole) for name, (least, whole) in NUMBERS.items() if name in given
        }
        if optimizer is not None:
            options["optimizer"] = optimizer
        if "noisy" in given:
            options["noisy"] = self.switch(given["noisy"], "noisy")
        if "race" in given:
            race = self.known(given["race"], ("first", "eta"), "race")
            if "first" not in race:
                self.wrong(given["race"], "race needs first, the number of samples that all candidates are scored on")
            else:
                eta = self.number(race["eta"], "eta", 2, True) if "eta" in race else 3
                options["race"] = Race(self.number(race["first"], "first", 1, True), eta)
        return options

    def engine(self, given: Mapping[str, yaml.Node]) -> dict[str, str]:
        """Return tensor_type and device where they are given."""
        found = {name: self.text(given[name]) for name in ("tensor_type", "device") if name in given}
        kind, device = found.get("tensor_type", "np"), found.get("device", "cpu")
        if kind not in ("np", "pd"):
            self.wrong(given["tensor_type"], f"tensor_type must be np or pd, not {shown(kind)}{nearest(kind, ('np', 'pd'))}")
        elif kind == "np" and device != "cpu":
            self.wrong(given["device"], f"device {shown(device)} needs tensor_type: pd; np computes on the CPU")
        elif found:
            at = given["device" if "device" in given else "tensor_type"]
            for sentence in engines.problems(engines.Engine(kind, device)):
                self.wrong(at, sentence.replace("--device ", "device: ").replace("--tensor_type ", "tensor_type: "))
        return found

    def scoring(self, nodes: Sequence[yaml.Node]) -> tuple[Evaluation, Mapping[str, str], Data, int] | None:
        for name in ("search", "sweep"):
            if has_section(nodes, name) and (node := self.section(nodes, name)) is not None:
                given = {key: value for key, (_, value) in self.mapping(node, name).items()}
                break
        else:
            top = self.section(nodes, "evaluate")
            if top is None:
                return None
            root = next(node for node in nodes if isinstance(node, yaml.MappingNode) and has_section([node], "evaluate"))
            given = self.known(root, ("evaluate", "objectives", "data", "seed"), "a file for --with")
            node = root
        evaluate = self._evaluation(node, given)
        objectives = self.objectives(node, given) if "objectives" in given else {}
        seed = self.number(given["seed"], "seed", 0, True) if "seed" in given else 0
        return (evaluate, objectives, self.data(given), seed) if evaluate is not None else None

    def _evaluation(self, node: yaml.Node, given: Mapping[str, yaml.Node]) -> Evaluation | None:
        if "evaluate" not in given:
            self.wrong(node, "evaluate, which says how candidates are scored, is missing")
            return None
        inner = {key: value for key, (_, value) in self.mapping(given["evaluate"], "evaluate").items()}
        kinds = [kind for kind in KINDS if kind in inner]
        if len(kinds) != 1:
            others = [key for key in inner if nearest(key, KINDS)]
            meant = nearest(others[0], KINDS) if others and not kinds else ""
            named = ", ".join(kinds) or (others[0] if others else "none of them")
            self.wrong(given["evaluate"], f"evaluate must have one of {', '.join(KINDS)}, not {named}{meant}")
            return None
        limit = self.number(inner["time_limit"], "time_limit", 1e-3, False) if "time_limit" in inner else None
        settings = {key: self.plain(value) for key, value in inner.items() if key not in (kinds[0], "time_limit")}
        what = inner[kinds[0]]
        nested = self.mapping(what, kinds[0]) if isinstance(what, yaml.MappingNode) else {}
        places = {key: self._at(value) for key, value in inner.items()}
        places |= {key: self._at(value) for key, (_, value) in nested.items()}
        return Evaluation(kinds[0], self.plain(what), settings, limit, self._at(what), places)

    def objectives(self, node: yaml.Node, given: Mapping[str, yaml.Node]) -> dict[str, str]:
        if "objectives" not in given:
            self.wrong(node, "objectives, which metric to maximize or minimize, is missing: {accuracy: maximize}")
            return {}
        found = {}
        for metric, (_, value) in self.mapping(given["objectives"], "objectives").items():
            found[metric] = self.text(value)
            if found[metric] not in DIRECTIONS:
                self.wrong(value, f"{metric} must be maximize or minimize, not {shown(found[metric])}")
        if not found and not self.problems:
            self.wrong(given["objectives"], "objectives is empty")
        return found

    def data(self, given: Mapping[str, yaml.Node]) -> Data:
        inner = self.known(given["data"], ("search", "report", "shared"), "data") if "data" in given else {}
        shared = self.switch(inner["shared"], "shared") if "shared" in inner else False
        paths = {split: self.text(inner[split]) for split in ("search", "report") if split in inner}
        return Data(paths.get("search"), paths.get("report"), shared, {split: self._at(inner[split]) for split in paths})

    def rule(self, given: Mapping[str, yaml.Node], objectives: Mapping[str, str]) -> Rule | None:
        """Return the rule of the key `pick`; None if there is none, or it is wrong."""
        if "pick" not in given:
            return None
        try:
            return parse_rule(self.text(given["pick"]), self._at(given["pick"]), objectives)
        except ConfigError as error:
            self.problems += error.problems
            return None

    # --- values

    def number(self, node: yaml.Node, name: str, least: float, whole: bool) -> Any:
        value = self.scalar(node)
        fits = not isinstance(value, bool | str) and least <= value <= MOST and (not whole or value == int(value))
        if not fits:
            self.wrong(node, f"{name} must be a {'whole ' if whole else ''}number of at least {least:g}, not {shown(value)}")
            return least
        return int(value) if whole else float(value)

    def switch(self, node: yaml.Node, name: str) -> bool:
        value = self.scalar(node)
        if not isinstance(value, bool):
            self.wrong(node, f"{name} must be true or false, not {shown(value)}")
        return value is True

    def plain(self, node: yaml.Node) -> Any:
        """Return a node as plain values: mappings, lists and scalars."""
        if isinstance(node, yaml.SequenceNode):
            return [self.plain(item) for item in node.value]
        if isinstance(node, yaml.MappingNode):
            return {key: self.plain(value) for key, (_, value) in self.mapping(node, "a value").items()}
        value: Value = self.scalar(node)
        return value
