"""What differs between checkpoints as far as headers and config.json tell; values aren't compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..detect import detect, read_config
from ..errors import CheckpointError
from ..inputs import SETTINGS, setting
from ..layout import normalise
from ..names import pattern_of, stacks
from ..readers import Checkpoint

MISSING = "missing"


def in_one_layout(
    checkpoints: Sequence[Checkpoint], given: Sequence[str | None], prefix: str
) -> tuple[tuple[Checkpoint, ...], str | None, list[str]]:
    """The checkpoints as layout.normalise views them, in the first one's layout; where it refuses them together (one ties
    lm_head and another doesn't, for one), each as it views it alone; where it refuses that too, but they are of one layout,
    as they are stored. given: stated layouts, one each, or none.

    Returns them, the layout (None if it can't be told), and sentences on what was done. Raises CheckpointError.
    """
    config = next((found for one in checkpoints if (found := read_config(one.folder))), {})
    try:
        return normalise(checkpoints, given, None, False, prefix, config)
    except CheckpointError as error:
        pairs = list(zip(checkpoints, given or [None] * len(checkpoints), strict=True))
        layouts = [detect(one, prefix, config, said).layout for one, said in pairs]
        notes = [f"{line} (compared all the same)" for line in error.problems]
        if None in layouts:
            raise
        try:
            alone = [normalise([one], [said], layouts[0], False, prefix, config) for one, said in pairs]
            return tuple(views[0] for views, _, _ in alone), layouts[0], notes
        except CheckpointError:
            if len(set(layouts)) > 1:
                raise
        return tuple(checkpoints), layouts[0], notes


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
