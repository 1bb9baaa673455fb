"""Read what the section `sweep` of a file asks for: points over a recipe's free values, or between two models.

sweep:
  pre: ./sft                  # the model before alignment
  aligned: ./rlhf             # the model after it
  method: [linear, hma]       # linear, slerp, hma, lines, expo; linear unless given
  toward_aligned: 0:1:0.1     # 0 is pre, 1 is aligned
  blocks: 3                   # of hma: groups of layers, or their first and last layers: [[0, 8], [9, 17], [18, 25]]
  rest: mean                  # of hma: what is in no layer moves as the first group, the last one, or the mean
  evaluate: ...               # as in a search
  objectives: {reward: maximize, reading: maximize}    # the first is the reward, unless `reward: NAME` is given
  pick: maximize reading subject to reward >= 0.98 of aligned
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import field
from typing import Any

import yaml

from ..parsing import nearest, shown
from ..recipe.yaml_nodes import is_null
from ..records import record
from .ranges import read_range, spaced
from .rule import Rule
from .sections import NUMBERS, Sections
from .space import without_sections
from .spec import Data, Evaluation, File

METHODS: Mapping[str, tuple[float, float]] = {  # method -> least and greatest toward_aligned
    "linear": (0.0, 10.0),
    "slerp": (0.0, 1.0),
    "hma": (0.0, 1.0),
    "lines": (0.0, 1.0),
    "expo": (1.0, 10.0),
}
DEFAULTS: Mapping[str, tuple[float, float, float]] = {"expo": (1.0, 1.5, 0.1)}  # low, high, step
RESTS = ("first", "last", "mean")
KEPT = ("out_dtype", "tokenizer", "tokenizer_source", "chat_template")  # keys beside the section, of each point's recipe
_OWN = ("pre", "aligned", "toward_aligned", "method", "blocks", "rest", "lattice", "reward")
_FOR_HMA = ("blocks", "rest", "lattice")
_COMMON = ("evaluate", "objectives", "data", "pick", "tensor_type", "device", "seed", "workers")


@record(frozen=True)
class Alignment:
    """Points between a model and what alignment made of it, and beyond.

    pre, aligned: paths of the two. toward: method -> the values of toward_aligned. blocks: a number of groups of layers, or
    the first and last layer of each. rest: one of RESTS. lattice: into how many parts the groups' sum is divided; None:
    twice as many as there are groups. reward: the metric that alignment is to raise. options: further keys of each recipe.
    at: key -> file, line and column.
    """

    pre: str
    aligned: str
    toward: Mapping[str, tuple[float, ...]]
    blocks: int | tuple[tuple[int, int], ...]
    rest: str
    lattice: int | None
    reward: str
    options: Mapping[str, Any]
    at: Mapping[str, str] = field(default_factory=dict, compare=False)


@record(frozen=True)
class SweepSpec:
    """What the section `sweep` asks for. alignment: None if the points are those of a recipe's free values. at: key -> file,
    line and column. The others are as in SearchSpec."""

    evaluate: Evaluation
    objectives: Mapping[str, str]
    data: Data
    alignment: Alignment | None
    pick: Rule | None = None
    seed: int = 0
    workers: int = 1
    tensor_type: str = "np"
    device: str = "cpu"
    at: Mapping[str, str] = field(default_factory=dict, compare=False)


def sweep_spec(file: File) -> SweepSpec:
    """Return what the section `sweep` of a file asks for. Raises ConfigError listing every mistake."""
    reader = _Sweep(file.where)
    spec = reader.sweep(file)
    reader.finish()
    assert spec is not None
    return spec


class _Sweep(Sections):
    def sweep(self, file: File) -> SweepSpec | None:
        node = self.section(file.nodes, "sweep")
        if node is None:
            return None
        given: dict[str, yaml.Node] = {}
        at = {}
        for name, (key, value) in self.mapping(node, "sweep").items():
            if name not in (*_COMMON, *_OWN):
                keys = (*_OWN, *_COMMON)
                self.wrong(key, f"unknown key {name!r}{nearest(name, keys)}; sweep has {', '.join(keys)}")
            elif not is_null(value):
                given[name], at[name] = value, self._at(value)
        evaluate = self._evaluation(node, given)
        objectives = self.objectives(node, given)
        options: dict[str, Any] = {**self.engine(given)}
        options |= {name: self.number(given[name], name, *NUMBERS[name]) for name in ("seed", "workers") if name in given}
        alignment = None
        if {"pre", "aligned"} & given.keys():
            alignment = self._alignment(node, given, objectives, file)
        elif own := [name for name in _OWN if name in given]:
            self.wrong(given[own[0]], f"{own[0]} is for a sweep between two models, pre and aligned")
        if self.problems or evaluate is None:
            return None
        pick, data = self.rule(given, objectives), self.data(given)
        return SweepSpec(evaluate, objectives, data, alignment, pick, at=at, **options)

    def _alignment(
        self, node: yaml.Node, given: Mapping[str, yaml.Node], objectives: Mapping[str, str], file: File
    ) -> Alignment | None:
        for name in ("pre", "aligned"):
            if name not in given:
                self.wrong(node, f"{name} is missing: the model {'before alignment' if name == 'pre' else 'after it'}")
        toward = self._toward(given)
        for name in _FOR_HMA if "hma" not in toward else ():
            if name in given:
                self.wrong(given[name], f"{name} is for method hma")
        rest = self._one_of(given, "rest", RESTS, "mean")
        reward = self._one_of(given, "reward", tuple(objectives), next(iter(objectives), ""))
        if len(objectives) == 1:
            self.wrong(given["objectives"], "a sweep between two models needs a reward and at least one capability")
        blocks = self._blocks(given["blocks"]) if "blocks" in given else 3
        lattice = self.number(given["lattice"], "lattice", 1, True) if "lattice" in given else None
        groups = blocks if isinstance(blocks, int) else len(blocks)
        if lattice is not None and lattice % max(groups, 1):
            self.wrong(
                given["lattice"], f"lattice must be a multiple of the number of blocks, {groups}, so that the mean is in it"
            )
        options = self._options(file)
        if self.problems:
            return None
        return Alignment(
            pre=os.path.expanduser(self.text(given["pre"])),
            aligned=os.path.expanduser(self.text(given["aligned"])),
            toward=toward,
            blocks=blocks,
            rest=rest,
            lattice=lattice,
            reward=reward,
            options=options,
            at={name: self._at(value) for name, value in given.items()},
        )

    def _one_of(self, given: Mapping[str, yaml.Node], name: str, allowed: tuple[str, ...], default: str) -> str:
        value = self.text(given[name]) if name in given else default
        if name in given and value not in allowed:
            self.wrong(
                given[name], f"{name} must be one of {', '.join(allowed)}, not {shown(value)}{nearest(value, allowed)}"
            )
        return value

    def _toward(self, given: Mapping[str, yaml.Node]) -> dict[str, tuple[float, ...]]:
        """Return the values of toward_aligned of each method."""
        node = given.get("method")
        items = node.value if isinstance(node, yaml.SequenceNode) else [node] if node is not None else []
        names = {self.text(item): item for item in items} or {"linear": None}
        for name, item in names.items():
            if name not in METHODS and item is not None:
                self.wrong(item, f"unknown method {shown(name)}{nearest(name, METHODS)}; there are {', '.join(METHODS)}")
        known = [name for name in names if name in METHODS]
        if "toward_aligned" not in given:
            return {name: spaced(*DEFAULTS.get(name, (0.0, 1.0, 0.1))) for name in known}
        node = given["toward_aligned"]
        values = self._numbers(node)
        for name in known:
            low, high = METHODS[name]
            if outside := [value for value in values if not low <= value <= high]:
                more = "; linear and expo go beyond the aligned model" if outside[-1] > high == 1.0 else ""
                self.wrong(node, f"{name} takes toward_aligned from {low:g} to {high:g}, not {outside[-1]:g}{more}")
        return dict.fromkeys(known, values)

    def _numbers(self, node: yaml.Node) -> tuple[float, ...]:
        """Return the numbers of a range, a list, or {search: [low, high], step: ...}."""
        spread = read_range(node)
        if spread is None and isinstance(node, yaml.MappingNode):
            inner = {key: value for key, (_, value) in self.mapping(node, "toward_aligned").items()}
            if inner.keys() == {"search"} and read_range(inner["search"]) is not None:
                return self._numbers(inner["search"])
            ends = self.list(inner["search"], "search") if inner.keys() == {"search", "step"} else []
            if len(ends) != 2:
                self.wrong(
                    node, "toward_aligned must be low:high:step, a list of numbers, or {search: [low, high], step: ...}"
                )
                return ()
            low, high, step = (self._number(one) for one in (*ends, inner["step"]))
            spread = low, high, step
        if spread is not None:
            try:
                return spaced(*spread)
            except ValueError as error:
                self.wrong(node, str(error))
                return ()
        items = node.value if isinstance(node, yaml.SequenceNode) else [node]
        numbers = [self._number(item) for item in items]
        if not numbers:
            self.wrong(node, "toward_aligned is empty")
        return tuple(dict.fromkeys(numbers))

    def _number(self, node: yaml.Node) -> float:
        value = self.scalar(node) if read_range(node) is None else str(node.value)
        if isinstance(value, bool | str) or not abs(value) < 1e6:
            said = str(getattr(node, "value", value))
            self.wrong(node, f"toward_aligned must be low:high:step, or a list of numbers, and {shown(said)} is no number")
            return 0.0
        return float(value)

    def _blocks(self, node: yaml.Node) -> int | tuple[tuple[int, int], ...]:
        """Return a number of groups of layers, or the first and last layer of each."""
        if isinstance(node, yaml.ScalarNode):
            return int(self.number(node, "blocks", 2, True))
        found: list[tuple[int, int]] = []
        for item in self.list(node, "blocks"):
            ends = [self.scalar(end) for end in item.value] if isinstance(item, yaml.SequenceNode) else []
            if len(ends) != 2 or any(type(end) is not int for end in ends):
                self.wrong(item, "a block must be its first and last layer, such as [0, 8]")
                return ()
            found.append((int(ends[0]), int(ends[1])))
        begin = 0
        for item, (first, last) in zip(node.value, found, strict=False):
            if first != begin or last < first:
                self.wrong(
                    item, f"blocks must follow one another: this one must begin at layer {begin}, and end at or after it"
                )
                return ()
            begin = last + 1
        if len(found) < 2:
            self.wrong(node, "hma needs at least two blocks")
        return tuple(found)

    def _options(self, file: File) -> dict[str, Any]:
        """Return the keys beside the section, which belong to the recipe of each point."""
        found: dict[str, Any] = {}
        for document in without_sections(file.nodes):
            for name, (key, value) in self.mapping(document, "the file").items():
                if name in KEPT:
                    found[name] = self.plain(value)
                else:
                    self.wrong(
                        key,
                        f"{name!r} has no place beside a sweep between pre and aligned, which makes its own recipes; leave"
                        f" it out, or pre and aligned ({', '.join(KEPT)} may stand here)",
                    )
        return found
