"""Parse YAML into nodes that know their line and column, so that error messages can name them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import yaml

from ..errors import ConfigError
from ..parsing import nearest, shown
from .recipe import Value

MERGE = "tag:yaml.org,2002:merge"  # the tag of the key <<, which includes another mapping


class _Loader(yaml.SafeLoader):
    """Mark nodes that aliases repeat, and refuse unknown tags."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        again = self.check_event(yaml.AliasEvent)
        node: yaml.Node | None = super().compose_node(parent, index)
        if node is not None and node.tag not in self.yaml_constructors and node.tag != MERGE:
            raise yaml.constructor.ConstructorError(None, None, f"unknown tag {node.tag}", node.start_mark)
        if again and node is not None:
            node.again = True  # type: ignore[attr-defined]
        return node


def documents(text: str, where: str) -> list[yaml.Node]:
    """Return the root node of each YAML document of a text. Raises ConfigError with the line and column of a mistake.

    where: what error messages call the text.
    """
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
    """Read nodes, and collect what is wrong with them (`problems`) and what is likely not meant (`notes`).

    where: what messages call the text.
    """

    def __init__(self, where: str):
        self._where = where
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.meant: Collection[str] = ()  # keys that mean something in other places
        self._mappings: dict[int, dict[str, tuple[yaml.Node, yaml.Node]]] = {}  # by the node's id

    def wrong(self, node: yaml.Node, sentence: str) -> None:
        """Add a problem at the node's line and column."""
        self.problems.append(f"{self._at(node)}: {sentence}")

    def note(self, node: yaml.Node, sentence: str) -> None:
        """Add a note at the node's line and column."""
        self.notes.append(f"{self._at(node)}: {sentence}")

    def _at(self, node: yaml.Node) -> str:
        return f"{self._where}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"

    def mapping(self, node: yaml.Node, what: str) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """Return the nodes of key and value of each entry by its key, including those of mappings that << includes.

        what: what messages call the node.
        """
        if not isinstance(node, yaml.MappingNode):
            if not is_null(node):
                self.wrong(node, f"{what} must be a mapping of names to values")
            return {}
        if id(node) in self._mappings:  # it is repeated by an alias, or includes itself
            return self._mappings[id(node)]
        found = self._mappings[id(node)] = {}
        merged: list[yaml.Node] = []
        for key, value in node.value:
            name = str(key.value) if isinstance(key, yaml.ScalarNode) else ""
            if key.tag == MERGE:
                self.wrong(key, "key '<<' stands twice; give it a list of mappings") if merged else None
                merged = value.value if isinstance(value, yaml.SequenceNode) else [value]
                continue
            if not name or name in found:
                self.wrong(key, f"key {name!r} stands twice" if name else "a key must be text")
            found[name] = key, value
        for other in merged:
            for name, pair in self.mapping(other, "the value of <<").items():
                found.setdefault(name, pair)
        return found

    def known(self, node: yaml.Node, keys: Sequence[str], what: str) -> dict[str, yaml.Node]:
        """Return the values of a mapping's known keys, empty values left out.

        An unknown key that is spelt like a known one, or means something elsewhere, is a problem; others have no effect,
        which is noted.
        """
        found = {}
        for name, (key, value) in self.mapping(node, what).items():
            if name not in keys and nearest(name, {*keys, *self.meant}):
                self.wrong(key, f"unknown key {name!r}{nearest(name, keys)}; {what} has {', '.join(keys)}")
            elif name not in keys:
                self.note(key, f"{name!r} has no effect in {what}, which has {', '.join(keys)}")
            elif not is_null(value):
                found[name] = value
        return found

    def list(self, node: yaml.Node, what: str) -> list[yaml.Node]:
        """Return the items of a list; empty, and a problem, if the node isn't one."""
        if not isinstance(node, yaml.SequenceNode):
            self.wrong(node, f"{what} must be a list")
            return []
        return list(node.value)

    def text(self, node: yaml.Node) -> str:
        """Return a node's text; "", and a problem, if it has none."""
        if not isinstance(node, yaml.ScalarNode) or not node.value:
            self.wrong(node, "must be text")
            return ""
        if "\0" in node.value:
            self.wrong(node, "contains a NUL character")
        return str(node.value)

    def scalar(self, node: yaml.Node) -> Value:
        """Return a node's value, of the type that YAML gives it; text if YAML gives it another type than Value's."""
        if not isinstance(node, yaml.ScalarNode):
            self.wrong(node, "must be a single value")
            return ""
        try:
            value = yaml.SafeLoader("").construct_object(node)
        except (yaml.YAMLError, ValueError):
            value = node.value
        if isinstance(value, int | float) and ":" in node.value:
            self.wrong(
                node,
                f"YAML takes {shown(node.value)} for {shown(value)}, a number in base 60; write that, or quotes around text;"
                " a range low:high:step is for sweep, and for evolve as {search: low:high:step}",
            )
        return value if isinstance(value, bool | int | float | str) else str(node.value)


def is_null(node: yaml.Node) -> bool:
    """Return whether a node is empty, null or ~."""
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"
