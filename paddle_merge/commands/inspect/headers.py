"""Find the differences of checkpoints in headers and config.json, without comparing values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...checkpoints.config_json import read_config
from ...checkpoints.names import pattern_of, stacks
from ...checkpoints.tensors import Checkpoint
from ...conversion.inputs import SETTINGS, in_one_layout, setting
from ...errors import CheckpointError

MISSING = "missing"


def differences(checkpoints: Sequence[Checkpoint], described: Sequence[Mapping[str, Any]], prefix: str) -> dict[str, Any]:
    """Return what differs, for JSON: `facts`, `tensors`, and `notes` on how the names were matched.

    Facts and tensors have a list of their values in each checkpoint: for a tensor "[16, 24] bfloat16", None if it is
    missing.
    """
    facts: dict[str, list[Any]] = {}
    for name in ("format", "layout", "family", "architectures"):
        facts[name] = [one[name] for one in described]
    facts["tied"] = [one["tied"]["tied"] for one in described]
    facts["dtypes"] = [", ".join(one["dtypes"]) for one in described]
    configs = [read_config(one.folder) for one in checkpoints]
    for name in SETTINGS[1:]:  # the first is the family
        facts[name] = [setting(config, name) for config in configs]
    notes: list[str] = []
    layouts = {one["layout"] for one in described}
    if None in layouts and len(layouts) > 1:
        notes = ["names and shapes are compared as stored, because not all layouts are known"]
    elif len(layouts) > 1:
        try:
            checkpoints, _, notes = in_one_layout(checkpoints, (), prefix)
        except CheckpointError as error:
            notes = [f"names and shapes are compared as stored: {line}" for line in error.problems]
    layers = [stacks(one.tensors) for one in checkpoints]
    for stack in dict.fromkeys(stack for one in layers for stack in one):
        facts[f"layers in {stack}"] = [one.get(stack) for one in layers]
    names = dict.fromkeys(name for one in checkpoints for name in one.tensors)
    tensors: dict[str, list[str | None]] = {}
    for name in names:
        entries = [one.tensors.get(name) for one in checkpoints]
        tensors[name] = [f"{list(entry.shape)} {entry.dtype.name}" if entry else None for entry in entries]
    return {
        "facts": {name: values for name, values in facts.items() if any(value != values[0] for value in values)},
        "tensors": {name: values for name, values in tensors.items() if len(set(values)) > 1},
        "notes": notes,
    }


def grouped(tensors: Mapping[str, Sequence[str | None]]) -> dict[tuple[str, tuple[str | None, ...]], int]:
    """Return (name with * for the layer, values in each checkpoint) -> the number of tensors with both."""
    found: dict[tuple[str, tuple[str | None, ...]], int] = {}
    for name, values in tensors.items():
        key = pattern_of(name), tuple(values)
        found[key] = found.get(key, 0) + 1
    return found
