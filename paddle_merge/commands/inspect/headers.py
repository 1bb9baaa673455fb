"""What differs between checkpoints as far as headers and config.json tell; values aren't compared."""

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
    """JSON: `facts` and `tensors` that aren't the same everywhere, each with a list of what they are in every checkpoint
    (a tensor: "[16, 24] bfloat16"; None where there is none), and `notes` on how names were made to match."""
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
        notes = ["names and shapes are compared as they are stored, since not all layouts can be told"]
    elif len(layouts) > 1:
        try:
            checkpoints, _, notes = in_one_layout(checkpoints, (), prefix)
        except CheckpointError as error:
            notes = [f"names and shapes are compared as they are stored: {line}" for line in error.problems]
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
    """(name with a star for the layer, what it is in every checkpoint) -> how many tensors that holds for."""
    found: dict[tuple[str, tuple[str | None, ...]], int] = {}
    for name, values in tensors.items():
        key = pattern_of(name), tuple(values)
        found[key] = found.get(key, 0) + 1
    return found
