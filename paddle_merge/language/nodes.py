"""YAML nodes that know where they stand, so that every mistake is told by line and column."""

from __future__ import annotations

from collections.abc import Sequence

import yaml

from ..errors import ConfigError
from ..parsing import nearest
from ..recipe import Value


def documents(text: str, where: str) -> list[yaml.Node]:
    """Raises ConfigError."""
    try:
        return list(yaml.compose_all(text, yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        at = f"{where}:{mark.line + 1}:{mark.column + 1}" if mark else where
        raise ConfigError(f"{at}: can't be parsed ({error.problem})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: can't be parsed ({' '.join(str(error).split())})") from None


class Nodes:
    """Reads nodes, and collects what is wrong with them (problems), or likely not meant (notes)."""

    def __init__(self, where: str):
        self._where = where
        self.problems: list[str] = []
        self.notes: list[str] = []

    def wrong(self, node: yaml.Node, sentence: str) -> None:
        self.problems.append(f"{self._at(node)}: {sentence}")

    def note(self, node: yaml.Node, sentence: str) -> None:
        self.notes.append(f"{self._at(node)}: {sentence}")

    def _at(self, node: yaml.Node) -> str:
        return f"{self._where}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"

    def mapping(self, node: yaml.Node, what: str) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """Keys -> the nodes of key and value."""
        if not isinstance(node, yaml.MappingNode):
            if not is_null(node):
                self.wrong(node, f"{what} must hold names and values")
            return {}
        found: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key, value in node.value:
            name = str(key.value) if isinstance(key, yaml.ScalarNode) else ""
            if not name or name in found:
                self.wrong(key, f"{name!r} twice" if name else "a key must be a word")
            found[name] = key, value
        return found

    def known(self, node: yaml.Node, keys: Sequence[str], what: str) -> dict[str, yaml.Node]:
        found = {}
        for name, (key, value) in self.mapping(node, what).items():
            if name not in keys:
                self.wrong(key, f"unknown key {name!r}{nearest(name, keys)}; {what} has {', '.join(keys)}")
            elif not is_null(value):
                found[name] = value
        return found

    def list(self, node: yaml.Node, what: str) -> list[yaml.Node]:
        if not isinstance(node, yaml.SequenceNode):
            self.wrong(node, f"{what} must be a list")
            return []
        return list(node.value)

    def text(self, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode) or not node.value:
            self.wrong(node, "must be a word")
            return ""
        return str(node.value)

    def scalar(self, node: yaml.Node) -> Value:
        if not isinstance(node, yaml.ScalarNode):
            self.wrong(node, "must be one value")
            return ""
        try:
            value = yaml.SafeLoader("").construct_object(node)
        except (yaml.YAMLError, ValueError):
            value = node.value
        return value if isinstance(value, bool | int | float | str) else str(node.value)


def is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"
