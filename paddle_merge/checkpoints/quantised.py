"""Recognise quantised checkpoints. Their weights are codes that need a scale stored elsewhere, so codes can't be averaged.

What config.json says about them is in quantisation.py, and how they are read as numbers in conversion/scaled.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .tensors import Checkpoint

# Last words of the names of tensors that only quantised checkpoints have.
_PACKED = re.compile(r"qweight|qzeros|weight_packed|weight_zero_point|quant_weight|SCB|absmax|quant_map|bitsandbytes__\w+")
# Last words of the names of tensors that are scales, if the checkpoint also has weights of one byte per element.
_SCALE = re.compile(
    r"(.*_)?(weight|input|output|activation|act|quant|[qkv]|proj)(_inv)?_scales?(_2|_offset)?|(.*_)?scale_(inv|weight|input|output)"
    r"|scaled_fp8"
)
_BY_CONFIG = "its config.json has a quantization_config"


def signs(checkpoint: Checkpoint, config: Mapping[str, Any]) -> list[str]:
    """Return the reasons to take a checkpoint for a quantised one, as parts of a sentence; none if it isn't.

    config: its config.json. 8-bit floats without scales are plain numbers, not codes.
    """
    said = []
    if config.get("quantization_config"):
        said.append(_BY_CONFIG)
    coded = {name for name, entry in checkpoint.tensors.items() if entry.dtype.itemsize == 1 and entry.dtype.name != "bool"}
    found = []
    for name in checkpoint.tensors:
        stem, _, word = name.rpartition(".")
        beside = stem in coded or (word in ("scale", "scales") and f"{stem}.weight" in coded)  # l.weight.scale, l.scale
        if beside or (coded and _SCALE.fullmatch(word)) or _PACKED.fullmatch(word):
            found.append(name)
    if found:
        said.append(f"{len(found)} of its tensors hold scales or packed codes, {found[0]!r} for one")
    return said


def refusal(checkpoint: Checkpoint, said: Sequence[str], reason: str) -> str:
    """Return the sentence that refuses a quantised checkpoint. said: what shows that it is one. reason: why it can't be
    read."""
    plain = ", and if its weights are plain numbers, remove quantization_config from its config.json"
    remedy = f"convert it to bfloat16 first{plain if _BY_CONFIG in said else ''}"
    return f"{checkpoint.path}: is quantised ({'; '.join(said)}), and {reason}; {remedy}"


def problems(checkpoint: Checkpoint, config: Mapping[str, Any]) -> list[str]:
    """Return a list of one sentence if the checkpoint is quantised, else an empty list. config: its config.json."""
    said = signs(checkpoint, config)
    return [refusal(checkpoint, said, "codes with different scales can't be averaged")] if said else []
