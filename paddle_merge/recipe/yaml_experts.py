"""Read which experts and layers a recipe keeps: the keys `keep_experts` (keep_experts.py) and `drop_layers`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import yaml

from ..parsing import nearest, shown
from .keep_experts import SCORES, Group, KeepExperts
from .yaml_nodes import Nodes

_KEYS = ("count", "by", "statistics", "merge")


def read_keep_experts(nodes: Nodes, node: yaml.Node) -> KeepExperts | None:
    """Return the value of the key; None, and problems, if it has mistakes."""
    before = len(nodes.problems)
    if isinstance(node, yaml.SequenceNode):
        found = KeepExperts({None: _groups(nodes, node)})
    elif not isinstance(node, yaml.MappingNode):
        nodes.wrong(
            node,
            "keep_experts must be a list of experts, a list for each layer, or {count: 64, by: reap, statistics: FILE};"
            f" a score is one of {', '.join(SCORES)}",
        )
        return None
    elif all(name.isdecimal() for name in nodes.mapping(node, "keep_experts")):
        listed = nodes.mapping(node, "keep_experts").items()
        found = KeepExperts({int(name): _groups(nodes, value) for name, (_, value) in listed})
        if not listed:
            nodes.wrong(node, "keep_experts is empty")
    else:
        found = _by_score(nodes, node)
    return found if len(nodes.problems) == before else None


def read_drop_layers(nodes: Nodes, node: yaml.Node) -> tuple[int, ...]:
    """Return the layers that the key `drop_layers` lists, each once and in ascending order."""
    return tuple(sorted({_number(nodes, item, "a layer") for item in nodes.list(node, "drop_layers")}))


def _by_score(nodes: Nodes, node: yaml.Node) -> KeepExperts:
    given = nodes.known(node, _KEYS, "keep_experts")
    by = nodes.text(given["by"]) if "by" in given else ""
    count = _number(nodes, given["count"], "count") if "count" in given else 0
    if "count" not in given or count < 1:
        nodes.wrong(given.get("count", node), "keep_experts needs a count, how many experts each layer keeps, of at least 1")
    if by not in SCORES:
        said = f"by {shown(by)} is no score{nearest(by, SCORES)}" if by else "keep_experts needs by, what chooses experts"
        nodes.wrong(given.get("by", node), f"{said}; the scores are {', '.join(SCORES)}")
    elif SCORES[by] and "statistics" not in given:
        nodes.wrong(
            node,
            f"by {by} needs statistics: FILE, which `python -m paddle_merge expert-stats MODEL --prompts FILE.jsonl --output"
            " FILE.json` writes; by router_norm needs none",
        )
    elif not SCORES[by] and "statistics" in given and not _is_true(nodes, given):
        nodes.note(given["statistics"], f"'statistics' has no effect with by {by}")
    path = os.path.expanduser(nodes.text(given["statistics"])) if "statistics" in given else None
    return KeepExperts({}, count, by, path, _is_true(nodes, given))


def _is_true(nodes: Nodes, given: Mapping[str, yaml.Node]) -> bool:
    value = nodes.scalar(given["merge"]) if "merge" in given else False
    if not isinstance(value, bool):
        nodes.wrong(given["merge"], f"merge must be true or false, not {shown(value)}")
    return value is True


def _groups(nodes: Nodes, node: yaml.Node) -> tuple[Group, ...]:
    """Return a list of experts, each a number, or a mapping of experts to weights."""
    found = list[Group]()
    for item in nodes.list(node, "the experts of a layer"):
        if isinstance(item, yaml.MappingNode):
            group = [(key, nodes.scalar(value)) for key, (_, value) in nodes.mapping(item, "a group of experts").items()]
            if not group or not all(key.isdecimal() and _is_weight(weight) for key, weight in group):
                nodes.wrong(item, "a group of experts must be {expert: weight, ...}, with weights from 0 on")
                continue
            if not sum(float(weight) for _, weight in group):
                nodes.wrong(item, "the weights of a group of experts must not all be 0")
            found.append(tuple((int(key), float(weight)) for key, weight in group))
        else:
            found.append(((_number(nodes, item, "an expert"), 1.0),))
    if not found and isinstance(node, yaml.SequenceNode):
        nodes.wrong(node, "a layer must keep at least one expert")
    kept = [one[0][0] for one in found]
    twice = next((expert for place, expert in enumerate(kept) if expert in kept[:place]), None)
    if twice is not None:
        nodes.wrong(node, f"expert {twice} stands twice")
    return tuple(found)


def _is_weight(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e30


def _number(nodes: Nodes, node: yaml.Node, what: str) -> int:
    value = nodes.scalar(node)
    if type(value) is not int or value < 0:
        nodes.wrong(node, f"{what} must be a whole number from 0 on, not {shown(value)}")
        return 0
    return value
