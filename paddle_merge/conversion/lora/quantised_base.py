"""Quantise and dequantise the weights of a base as they were when an adapter was trained on them, before it is folded in.

PaddleFormers trains adapters on quantised weights (QLoRA), and writes which and how into the config.json beside the adapter:
quantization_config, with quantization_linear_list and weight_quantize_algo. Its merge_with_qdq_base_model folds the adapter
into weights that are quantised and dequantised first, since the adapter makes up for what they lost.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from ...checkpoints.adapters import Adapter
from ...checkpoints.config_json import read_config
from ...checkpoints.tensors import Checkpoint, TensorEntry
from ...errors import CheckpointError, MalformedError
from ...parsing import tensors_named
from .entry import AdaptedEntry, Requantised, read_from
from .targets import Targets

_LEVELS = {"weight_only_int8": 127, "llm.int8": 127, "weight_only_int4": 7}  # on each side of 0


def quantised_in_training(adapter: Adapter) -> dict[str, str]:
    """Return the modules that an adapter was trained on in quantised form, with Paddle's name of how.

    Raises CheckpointError if the config.json beside the adapter can't be read.
    """
    said = read_config(adapter.folder).get("quantization_config")
    if adapter.kind != "paddle" or not isinstance(said, dict):
        return {}
    found = {str(name): _algorithm(said, str(name)) for name in said.get("quantization_linear_list") or ()}
    return {name: algorithm for name, algorithm in found.items() if algorithm is not None}


def _algorithm(said: Mapping[str, Any], name: str) -> str | None:
    """Return how a module is quantised: patterns match whole names, those to ignore come first; None if it isn't."""
    given = said.get("weight_quantize_algo")
    if any(re.fullmatch(str(pattern), name) for pattern in said.get("ignore_modules") or ()):
        return None
    if not isinstance(given, dict):
        return str(given) if given else None
    matching = [one for one, patterns in given.items() if any(re.fullmatch(str(pattern), name) for pattern in patterns)]
    return str(matching[-1]) if matching else None  # as in PaddleFormers, the last one counts


def requantised(
    checkpoint: Checkpoint, adapter: Adapter, layout: str | None, config: Mapping[str, Any]
) -> tuple[Checkpoint, str]:
    """Return a checkpoint with these weights quantised and dequantised, and a sentence on them.

    layout: of the checkpoint's tensors, None if unknown. config: the model's. Raises CheckpointError if that can't be done
    as Paddle does it.
    """
    modules = quantised_in_training(adapter)
    if not modules:
        return (
            checkpoint,
            f"{adapter.path}: its config.json says nothing of a quantised base, so the base is folded as it is",
        )
    said = read_config(adapter.folder)["quantization_config"]
    if other := sorted({algorithm for algorithm in modules.values() if algorithm not in _LEVELS}):
        raise CheckpointError(
            f"{adapter.path}: was trained on weights quantised by {', '.join(other)}, which can't be repeated here (only"
            f" {', '.join(_LEVELS)}); leave out --merge_with_qdq_base_model, or fold it in PaddleFormers"
        )
    if said.get("group_size", -1) != -1:
        raise CheckpointError(
            f"{adapter.path}: was trained on weights quantised in groups of {said['group_size']}, which can't be repeated"
            " here; leave out --merge_with_qdq_base_model, or fold it in PaddleFormers"
        )
    targets, tensors, problems = Targets(checkpoint, adapter, layout, config), dict(checkpoint.tensors), list[str]()
    changed, missing = list[str](), list[str]()
    for module, algorithm in modules.items():
        target = targets.find(f"{module}.weight")
        if target is None:
            missing.append(f"{module}.weight")
            continue
        try:
            tensors[target] = _requantised(tensors[target], _LEVELS[algorithm], targets)
            changed.append(target)
        except MalformedError as error:
            problems.append(f"{checkpoint.path}: tensor {target!r} {error}")
    if missing:
        problems.append(
            f"{adapter.path}: its config.json says that {tensors_named(missing)} were quantised in training, and"
            f" {checkpoint.path} has no such tensors; leave out --merge_with_qdq_base_model"
        )
    if problems:
        raise CheckpointError(problems)
    how = ", ".join(sorted(set(modules.values())))
    note = f"{adapter.path}: {len(changed)} weights of the base are quantised ({how}) and dequantised first, as in training"
    return dataclasses.replace(checkpoint, tensors=tensors), note


def _requantised(entry: TensorEntry, levels: int, targets: Targets) -> AdaptedEntry:
    """Return a matrix quantised and dequantised before all other changes. Raises MalformedError if it can't be."""
    transposed = targets.stored_transposed(entry.name)
    if len(entry.shape) != 2 or not entry.dtype.is_float:
        raise MalformedError(f"is {entry.dtype.name} {list(entry.shape)}, and only matrices of floats are quantised")
    if transposed is None:
        raise MalformedError("may be stored transposed; state the layout with --layout")
    change = Requantised(1 if transposed else 0, levels)
    before = entry.changes if isinstance(entry, AdaptedEntry) else ()
    if before and isinstance(before[0], Requantised):
        if before[0] != change:
            raise MalformedError("was quantised in different ways when its adapters were trained")
        before = before[1:]
    return AdaptedEntry(entry.name, entry.dtype, entry.shape, read_from(entry), (change, *before))
