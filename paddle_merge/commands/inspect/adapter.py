"""Describe a LoRA adapter from its headers and its config."""

from __future__ import annotations

from collections import Counter
from typing import Any

from ...checkpoints.adapters import Adapter
from ...checkpoints.names import stacks, word_of
from ...conversion.lora.config import config_problems, scaling, stated_rank
from ...conversion.lora.parameters import named_parameters
from ...errors import MalformedError

_BASES = ("base_model_name_or_path", "base_model_name")  # PEFT's word, PaddleNLP's


def describe_adapter(adapter: Adapter) -> dict[str, Any]:
    """Return what `inspect --json` prints of an adapter, without what it prints of all files.

    ranks, scales, targets: value -> number of modules with it. token_rows: module -> how many rows of single tokens it
    replaces. problems: why the adapter can't be folded into any model.
    """
    modules, others = adapter.grouped
    modules, _ = named_parameters(modules, adapter)
    ranks: Counter[int] = Counter()
    scales: Counter[float] = Counter()
    targets: Counter[str] = Counter()
    problems = config_problems(adapter)
    for module in modules:
        a = module.tensors.get("A") or module.tensors.get("embedding A")
        if a is None or len(a.shape) < 2:
            continue
        rank = a.shape[0 if adapter.kind == "peft" else -1]
        targets[word_of(f"{module.title.removesuffix('.weight')}.weight")] += 1
        try:
            stated = stated_rank(adapter, module.title)
            if module.parameter and type(stated) is int and stated > 0 and rank % stated == 0:
                rank = stated  # of each expert
            ranks[rank] += 1
            scales[scaling(adapter, module.title, rank)] += 1
        except MalformedError as error:
            problems.append(f"{adapter.path}: {module.name!r} {error}")
    config = adapter.config
    return {
        "adapter": adapter.kind,
        "base_model": next((config[name] for name in _BASES if isinstance(config.get(name), str)), None),
        "modules": sum(targets.values()),
        "ranks": {str(rank): ranks[rank] for rank in sorted(ranks)},
        "scales": {f"{scale:.6g}": scales[scale] for scale in sorted(scales)},
        "targets": dict(targets),
        "token_rows": {
            module.name: entry.shape[0] for module in modules if (entry := module.tensors.get("rows")) and entry.shape
        },
        "dora": any("lengths" in module.tensors for module in modules),
        "whole_tensors": [name for name, _ in others],
        "layers": stacks(module.name + ".weight" for module in modules),
        "problems": problems,
    }
