"""Make the recipes between a model (pre) and what alignment made of it (aligned), and beyond it.

a is toward_aligned: 0 gives pre, 1 gives aligned. Of each tensor, theta_0 is pre's and theta is aligned's:

    linear  theta_0 + a (theta - theta_0)                        Lin et al. 2024, Mitigating the alignment tax of RLHF (MA)
    expo    the same with a > 1: aligned + (a - 1) (theta - theta_0)      Zheng et al. 2024, Weak-to-strong extrapolation
    slerp   along the arc between the two                        Shoemake 1985
    lines   a in the first layer, 1 in the last, evenly between  Wang et al. 2024, LiNeS, for one model: beta = 1 - alpha
    hma     a_k for group k of the layers, with mean a           Lin et al. 2024, heterogeneous model averaging

Papers' codes disagree on the side that their alpha weighs: HMA's weighs pre.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from ..checkpoints.names import stacks
from ..errors import ConfigError
from ..recipe.recipe import Recipe
from ..recipe.yaml_read import parse
from .gene import Gene, Values
from .merger import Merger
from .ranges import MOST_POINTS
from .sweep_spec import Alignment

EPS = 0.2  # of hma: what keeps every group's share above 0


class AlignmentSpace:
    """The candidates of a sweep between two models: (method, toward_aligned), and of hma the shares of each group too."""

    def __init__(self, asked: Alignment, where: str, merger: Merger):
        """Raises ConfigError if blocks don't fit the models, and CheckpointError."""
        self._asked, self._where = asked, where
        self._depths: Mapping[str, int] = {}
        self._groups = asked.blocks if isinstance(asked.blocks, int) else len(asked.blocks)
        if "hma" in asked.toward:
            first = self._recipe("task_arithmetic", [_model(asked.aligned, weight=1.0)])
            self._depths = stacks(merger.inputs(first).inputs[0].tensors)
            self._check_blocks()
        methods = tuple(asked.toward)
        self.genes: tuple[Gene, ...] = (
            Gene("method", "method", choices=methods, start=methods[0]),
            *(Gene(name, name, step=0.0) for name in ["toward_aligned", *(f"block {k + 1}" for k in range(self._groups))]),
        )

    def points(self) -> list[Values]:
        """Return all candidates: of each method, in ascending order of toward_aligned as it was given."""
        found: list[Values] = []
        for method, numbers in self._asked.toward.items():
            for a in numbers:
                if method != "hma":
                    found.append((method, a))
                    continue
                found += [(method, a, *shares) for shares in self._shares(a)]
        return list(dict.fromkeys(found))

    def recipe(self, values: Values) -> Recipe:
        """Return the recipe of a candidate. Raises ConfigError."""
        method, a = str(values[0]), float(values[1])
        if method == "slerp":
            return self._recipe("slerp", [_model(self._asked.pre), _model(self._asked.aligned)], t=a)
        if method == "lines":
            return self._recipe("lines", [_model(self._asked.aligned, weight=1.0)], alpha=a)
        weight = a if method != "hma" else self._by_layer(a, cast(tuple[float, ...], values[2:]))
        return self._recipe("task_arithmetic", [_model(self._asked.aligned, weight=weight)])

    def named(self, values: Values) -> dict[str, Any]:
        """Return the values of a candidate by their names."""
        return {gene.name: value for gene, value in zip(self.genes, values, strict=False)}

    def title(self, values: Values) -> str:
        method, a, *shares = values
        return f"{method} {a:g}" + (f" ({', '.join(f'{one:g}' for one in shares)})" if shares else "")

    def _recipe(self, method: str, models: list[dict[str, Any]], **parameters: Any) -> Recipe:
        document: dict[str, Any] = {"merge_method": method, "base_model": self._asked.pre, "models": models}
        document |= {"parameters": parameters} if parameters else {}
        return parse(json.dumps({**document, **self._asked.options}), "the recipe of a point").recipe

    def _place(self, key: str) -> str:
        return self._asked.at.get(key, self._asked.at.get("pre", self._where))

    # --- hma

    @property
    def _parts(self) -> int:
        return self._asked.lattice or 2 * self._groups

    def _shares(self, a: float) -> Iterator[tuple[float, ...]]:
        """Yield the shares of the groups: of a lattice over all that have mean a, and of which none is above 1.

        The authors' parametrisation is a_k = a K (sigmoid(m_k) + eps) / sum_j (sigmoid(m_j) + eps) with free m, eps = 0.2
        and K groups. It reaches every set of shares with mean a of which the largest is less than (1 + eps) / eps = 6 times
        the smallest, so points of a lattice over the simplex are taken among those: a_k = a K i_k / n with whole numbers
        i_k > 0 whose sum is n.
        """
        groups = self._groups
        parts = self._parts
        for cuts in itertools.combinations(range(1, parts), groups - 1):
            pieces = [end - begin for begin, end in itertools.pairwise((0, *cuts, parts))]
            shares = tuple(float(f"{a * groups * piece / parts:.10g}") for piece in pieces)
            if max(pieces) * EPS < min(pieces) * (1 + EPS) and max(shares) <= 1:
                yield shares

    def _by_layer(self, a: float, shares: Sequence[float]) -> Any:
        """Return the setting of a weight that is a group's share in its layers, by the stacks of the models."""
        rest = {"first": shares[0], "last": shares[-1], "mean": a}[self._asked.rest]
        if len({*shares, rest}) == 1:
            return rest
        conditions: list[dict[str, Any]] = []
        for stack, depth in self._depths.items():
            values = [shares[self._group(layer, depth)] for layer in range(depth)]
            conditions.append({"filter": rf"re:^{re.escape(stack)}\.\d+\.", "value": values if depth > 1 else values[0]})
        return [*conditions, {"value": rest}]

    def _group(self, layer: int, depth: int) -> int:
        """Return the group of a layer of a stack: of one that isn't the deepest, the group at the same place."""
        blocks = self._asked.blocks
        if isinstance(blocks, int):
            return min(layer * blocks // depth, blocks - 1)
        scaled = round(layer * blocks[-1][1] / (depth - 1)) if depth > 1 else blocks[-1][1]
        return next(number for number, (_, last) in enumerate(blocks) if scaled <= last)

    def _check_blocks(self) -> None:
        depth, blocks = max(self._depths.values(), default=0), self._asked.blocks
        if not depth:
            raise ConfigError(
                f"{self._place('method')}: hma needs layers, and {self._asked.pre} has none; linear needs none"
            )
        if isinstance(blocks, int) and blocks > depth:
            raise ConfigError(f"{self._place('blocks')}: {blocks} blocks of {depth} layers; give at most {depth}")
        if not isinstance(blocks, int) and blocks[-1][1] != depth - 1:
            raise ConfigError(
                f"{self._place('blocks')}: the blocks end at layer {blocks[-1][1]}, and the models' last one is {depth - 1}"
            )
        if (count := math.comb(self._parts - 1, self._groups - 1)) > MOST_POINTS:
            raise ConfigError(
                f"{self._place('blocks')}: {self._groups} blocks in a lattice of {self._parts} parts are {count:,} points"
                " for each toward_aligned; give fewer blocks, or a smaller lattice"
            )


def _model(path: str, **parameters: Any) -> dict[str, Any]:
    return {"model": path} | ({"parameters": parameters} if parameters else {})
