"""Say which experts of a mixture a recipe keeps: the value of the key `keep_experts`. yaml_experts.py reads it.

keep_experts: [0, 2, 5]                                         the same in every layer
keep_experts: {3: [0, 2, 5], 4: [1, 2, 7]}                      layer by layer
keep_experts: {3: [{0: 0.7, 4: 0.3}, 2, 5], 4: [1, 2, 7]}       expert 0 becomes 0.7 of expert 0 and 0.3 of expert 4
keep_experts: {count: 64, by: reap, statistics: stats.json}     those with the highest scores
keep_experts: {count: 64, by: frequency, statistics: stats.json, merge: true}
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ..records import record

# What experts are chosen by; whether that needs a file of statistics.
SCORES = {"reap": True, "output_norm": True, "frequency": True, "router_norm": False}
Group = tuple[tuple[int, float], ...]  # experts and their weights; the first gives the router's row


@record(frozen=True)
class KeepExperts:
    """Say which experts are kept.

    layers: of each layer, by its number before layers are dropped, what becomes each expert of the output; the only key
        None is all layers. Empty if a count is given instead.
    count: how many experts each layer keeps. by: the score that chooses them, one of SCORES. statistics: the file that has
        what it is computed from; None if it needs none. merge: whether the others are merged into them, instead of dropped.
    """

    layers: Mapping[int | None, tuple[Group, ...]]
    count: int = 0
    by: str = ""
    statistics: str | None = None
    merge: bool = False

    def of(self, layer: int) -> tuple[Group, ...] | None:
        """Return what becomes each expert of a layer; None if nothing says so."""
        return self.layers.get(layer, self.layers.get(None))

    def plain(self, absolute: bool = False) -> Any:
        """Return the value of the key, as YAML has it. absolute: whether to make the path of the statistics absolute."""
        if self.count:
            path = os.path.abspath(self.statistics) if absolute and self.statistics else self.statistics
            found: dict[str, Any] = {"count": self.count, "by": self.by}
            return found | ({"statistics": path} if path else {}) | ({"merge": True} if self.merge else {})
        listed = {
            layer: [one[0][0] if len(one) == 1 else dict(one) for one in groups] for layer, groups in self.layers.items()
        }
        return listed.get(None, listed)
