"""Read and write the file of statistics of experts: how often each was chosen on some text, and how much it contributed.

    {"format": "paddle_merge expert statistics", "version": 1, "model": "...", "prompts": "...", "tokens": 81920,
     "layers": {"3": {"count": [..], "gate": [..], "norm": [..], "gated_norm": [..]}}}

Each list has a number for each expert of the layer of that number; sums go over the tokens, padding left out:

    count       of the tokens for which the expert is among the top k
    gate        the sum of their gates, the weights with which the expert's outputs are added up
    norm        the sum of ||output||, the L2 norm of the expert's output before it is multiplied by the gate
    gated_norm  the sum of gate * ||output||
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import CheckpointError
from ..records import record
from .json_files import read_json

FORMAT, VERSION = "paddle_merge expert statistics", 1
LISTS = ("count", "gate", "norm", "gated_norm")


@record(frozen=True)
class LayerStatistics:
    """Hold the sums of one layer, a number for each expert."""

    count: Sequence[float]
    gate: Sequence[float]
    norm: Sequence[float]
    gated_norm: Sequence[float]

    def scores(self, by: str) -> Sequence[float]:
        """Return the score "frequency", "reap" or "output_norm" of each expert, larger for those to be kept.

        reap: the mean of gate * ||output|| over the tokens that were sent to the expert (arXiv 2510.13999). output_norm: the
        mean of ||output|| over these (MAN, arXiv 2606.15716). An expert that was sent none has the score 0.
        """
        if by == "frequency":
            return self.count
        sums = self.gated_norm if by == "reap" else self.norm
        return [total / count if count else 0.0 for total, count in zip(sums, self.count, strict=True)]


@record(frozen=True)
class ExpertStatistics:
    """Hold what the file says. model, prompts: what was measured, on what. tokens: their number. layers: by number."""

    model: str
    prompts: str
    tokens: int
    layers: Mapping[int, LayerStatistics]

    def to_json(self) -> str:
        """Return the content of the file: a line for each list."""
        about = {name: getattr(self, name) for name in ("model", "prompts", "tokens")}
        head = json.dumps({"format": FORMAT, "version": VERSION, **about}, ensure_ascii=False)
        layers = [
            f'"{number}": {{' + ",\n  ".join(f'"{name}": {json.dumps(list(getattr(one, name)))}' for name in LISTS) + "}"
            for number, one in self.layers.items()
        ]
        return f'{head[:-1]}, "layers": {{\n' + ",\n".join(layers) + "\n}}\n"


def read_statistics(path: str) -> ExpertStatistics:
    """Return the statistics of a file. Raises CheckpointError if it isn't one."""
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: is no file of statistics of experts; `python -m paddle_merge expert-stats` writes one"
        )
    if content.get("version") != VERSION:
        raise CheckpointError(f"{path}: is of version {content.get('version')!r}, and this program reads version {VERSION}")
    layers, listed = dict[int, LayerStatistics](), content.get("layers")
    for name, one in listed.items() if isinstance(listed, dict) else ():
        lists: list[Any] = [one.get(what) if isinstance(one, dict) else None for what in LISTS]
        if not name.isdecimal() or not all(map(_are_numbers, lists)) or len({len(its) for its in lists}) != 1:
            raise CheckpointError(f"{path}: layer {name!r} must have {', '.join(LISTS)}, a number from 0 on for each expert")
        layers[int(name)] = LayerStatistics(*lists)
    if not layers:
        raise CheckpointError(f"{path}: has no layers")
    model, prompts, tokens = content.get("model"), content.get("prompts"), content.get("tokens")
    return ExpertStatistics(str(model), str(prompts), tokens if isinstance(tokens, int) else 0, layers)


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(one, int | float) and not isinstance(one, bool) and math.isfinite(one) and one >= 0 for one in values
    )
