"""YAML nodes that know where they stand, so that every mistake is told by line and column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from ..errors import ConfigError
from ..parsing import nearest
from .recipe import Value

MERGE = "tag:yaml.org,2002:merge"  # of the key <<, which takes over another mapping's names


class _Loader(yaml.SafeLoader):
    """Marks nodes that stand in several places."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        again = self.check_event(yaml.AliasEvent)
        node: yaml.Node | None = super().compose_node(parent, index)
        if node is not None and node.tag not in self.yaml_constructors and node.tag != MERGE:
            raise yaml.constructor.ConstructorError(None, None, f"unknown tag {node.tag}", node.start_mark)
        if again and node is not None:
            node.again = True  # type: ignore[attr-defined]
        return node


def documents(text: str, where: str) -> list[yaml.Node]:
    """Raises ConfigError."""
    loader, found = None, list[yaml.Node]()
    try:
        loader = _Loader(text)
        while loader.check_node():
            found.append(loader.get_node())  # type: ignore[arg-type]
        return found
    except yaml.MarkedYAMLError as error:
        mark, problem = error.problem_mark, str(error.problem)
        at = f"{where}:{mark.line + 1}:{mark.column + 1}" if mark else where
        hint = "; YAML takes spaces, not tabs" if "'\\t'" in problem else ""
        hint = "; is the indentation right?" if "<block" in problem else hint
        hint = "; a word that begins with * or & needs quotes" if error.context in _ANCHORS else hint
        raise ConfigError(f"{at}: can't be parsed ({problem}){hint}") from None
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        at = f"{where}:{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}"
        raise ConfigError(f"{at}: can't be parsed (character {error.character:#x} is not allowed)") from None
    except (ValueError, OverflowError):  # "\\UFFFFFFFF"
        mark = loader.get_mark() if loader is not None else yaml.Mark(where, 0, 0, 0, None, 0)
        raise ConfigError(f"{where}:{mark.line + 1}:{mark.column + 1}: can't be parsed (no such character)") from None
    except RecursionError:
        raise ConfigError(f"{where}: is nested too deeply") from None


_ANCHORS = ("while scanning an alias", "while scanning an anchor")


class Nodes:
    """Reads nodes, and collects what is wrong with them (problems), or likely not meant (notes)."""

    def __init__(self, where: str):
        self._where = where
        self.problems: list[str] = []
        self.notes: list[str] = []
        self._mappings: dict[int, dict[str, tuple[yaml.Node, yaml.Node]]] = {}  # by the node's id

    def wrong(self, node: yaml.Node, sentence: str) -> None:
        self.problems.append(f"{self._at(node)}: {sentence}")

    def note(self, node: yaml.Node, sentence: str) -> None:
        self.notes.append(f"{self._at(node)}: {sentence}")

    def _at(self, node: yaml.Node) -> str:
        return f"{self._where}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"

    def mapping(self, node: yaml.Node, what: str) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """Keys -> the nodes of key and value; with those that << takes over, unless it has them itself."""
        if not isinstance(node, yaml.MappingNode):
            if not is_null(node):
                self.wrong(node, f"{what} must hold names and values")
            return {}
        if id(node) in self._mappings:  # in several places; or taken over by itself, while it is read
            return self._mappings[id(node)]
        found = self._mappings[id(node)] = {}
        merged: list[yaml.Node] = []
        for key, value in node.value:
            name = str(key.value) if isinstance(key, yaml.ScalarNode) else ""
            if key.tag == MERGE:
                self.wrong(key, "'<<' twice; give it a list") if merged else None
                merged = value.value if isinstance(value, yaml.SequenceNode) else [value]
                continue
            if not name or name in found:
                self.wrong(key, f"{name!r} twice" if name else "a key must be a word")
            found[name] = key, value
        for other in merged:
            for name, pair in self.mapping(other, "what << takes over").items():
                found.setdefault(name, pair)
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
        if "\0" in node.value:
            self.wrong(node, "has a character that no name can have, \\0")
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
