"""Report a merge of adapters: before it starts, when it is done, and in merge_lora_report.json."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...backends.machine import free_memory
from ...parsing import size_text
from ...plan.file_names import MERGE_LORA_REPORT
from ...version import __version__
from .. import common_flags
from ..extract_lora.adapter_files import NewAdapter
from .config import MergeLoraConfig
from .output_files import Arrangement
from .peft_types import FACTORWISE

log = logging.getLogger("paddle_merge")
SHOWN = 5  # layers listed in the summary
_MEASURED = 1e-7  # relative distances below it are lost in the rounding of measuring
_DENSE = 5  # float64 matrices of the size of a layer, beside one of each adapter, that cutting off takes; measured


def announce(config: MergeLoraConfig, output: Arrangement, warnings: Sequence[str]) -> None:
    """Log what will be done, and how much memory one layer takes at most."""
    for warning in warnings:
        log.warning("%s", warning)
    ranks = sorted(set(output.ranks.values()))
    shown = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
    most = "at most " if config.energy is not None else ""
    log.info("adapter  for %s; rank %s%s; low-rank matrices in %s", output.format, most, shown, output.dtype.name)
    named = config.adapter_path_list
    if config.weight_list is not None or config.type is not None:
        named = [f"{weight:g} * {path}" for path, weight in zip(named, config.weights, strict=True)]
    log.info("merge    %s of %s", config.type or config.merge_method, ", ".join(named))
    everywhere = sum(len(layer.parts) == len(config.weights) for layer in output.layers)
    log.info("layers   %d, of which %d are in every adapter", len(output.layers), everywhere)
    whole: dict[str, list[str]] = {}
    for one in output.whole:
        how = "the same in the adapters" if len(one.held) > 1 else "of one adapter"
        line = f"copied   %s ({how})" if one.kept else f"whole    %s (merged by {config.merge_method or 'weights'})"
        whole.setdefault(line, []).append(one.name)
    for line, names in whole.items():
        log.info(line, ", ".join(names))
    held = sum(sum(layer.shape) * output.ranks[layer.name] for layer in output.layers) * output.dtype.itemsize
    needed = workers(config, output) * layer_memory(config, output) + (held if config.energy is not None else 0)
    threads = f"{workers(config, output)} layers at a time" if workers(config, output) > 1 else "one layer at a time"
    log.info("memory   at most about %s beside the program, for %s", size_text(needed), threads)


def workers(config: MergeLoraConfig, output: Arrangement) -> int:
    """Return how many layers are merged at a time: as asked; else as many as half of the free memory holds."""
    if config.n_process is not None:
        return config.n_process
    fitting = free_memory() // 2 // max(1, layer_memory(config, output))
    return max(1, min(common_flags.workers(None), fitting, len(output.layers)))


def layer_memory(config: MergeLoraConfig, output: Arrangement) -> int:
    """Return an upper estimate of the bytes of memory that the largest layer takes."""
    dense = config.type is None or config.type.endswith("_svd")
    found = 0
    for layer in output.layers:
        factors = 8 * sum(layer.shape) * (layer.rank + output.ranks[layer.name]) * 4
        found = max(found, factors + dense * math.prod(layer.shape) * (4 * len(config.weights) + 8 * _DENSE))
    return found


def report(config: MergeLoraConfig, output: Arrangement, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the content of merge_lora_report.json: the settings, and how near each layer is to the sum of the changes.

    rows: of factors.py, one for each layer.
    """
    norm = math.sqrt(sum(row["sum_norm"] ** 2 for row in rows))
    away = math.sqrt(sum((row["distance_from_sum"] * (row["sum_norm"] or 1.0)) ** 2 for row in rows))
    result = {
        "paddle_merge_version": __version__,
        "numpy_version": np.__version__,
        **dataclasses.asdict(config),
        "weight_list": config.weights,
        "combination_type": config.type,
        "format": output.format,
        "out_dtype": output.dtype.name,
        "scale": output.scale,
        "distance_from_sum": away / norm if norm else away,
        "layers": list(rows),
        "whole": [
            {"name": one.name, "shape": list(one.shape), "adapters": list(one.held), "copied": one.kept}
            for one in output.whole
        ],
    }
    if config.truncates:
        lost, total = (sum(row[key] ** 2 for row in rows) for key in ("lost_norm", "change_norm"))
        result["kept"] = 1 - lost / total if total else 1.0
    return result


def summarise(report: Mapping[str, Any], adapter: NewAdapter, seconds: float) -> None:
    """Log how far the output is from the sum of the changes, and what cutting it off has lost where it lost most."""
    if "kept" in report:
        log.info(
            "kept     %.6f of the sum of squares of the merged change; the layers of which least is kept:", report["kept"]
        )
        log.info("         %8s %6s  %s", "kept", "rank", "layer")
        for row in sorted(report["layers"], key=lambda row: row["kept"])[:SHOWN]:
            log.info("         %8.4f %6d  %s", row["kept"], row["rank"], row["name"])
    if report["combination_type"] in ("cat", "svd", *FACTORWISE):
        total = report["distance_from_sum"]
        most, name = max((row["distance_from_sum"], row["name"]) for row in report["layers"])
        away = f"{total:.3g}" if total >= _MEASURED else "below 1e-7"
        worst = f"; at most {most:.3g}, in {name}" if most >= _MEASURED else ""
        log.info("distance %s from the exact sum of the changes, relative to its norm%s", away, worst)
    size = size_text(adapter.shards[0].nbytes)
    log.info("written  to %s in %.1f s (%s); %s lists every layer", report["output_path"], seconds, size, MERGE_LORA_REPORT)
