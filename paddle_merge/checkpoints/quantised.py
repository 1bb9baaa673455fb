"""Weights that are codes: numbers only together with a scale that stands elsewhere, so that averaging them means nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .tensors import Checkpoint

# Tensors that only quantised checkpoints have, by the last word of their names.
_PACKED = re.compile(r"qweight|qzeros|weight_packed|weight_zero_point|quant_weight|SCB|absmax|quant_map|bitsandbytes__\w+")
# Tensors that are scales where there are also weights of one byte.
_SCALE = re.compile(
    r"(.*_)?(weight|input|output|activation|act|quant|[qkv]|proj)(_inv)?_scales?(_2|_offset)?|(.*_)?scale_(inv|weight|input|output)"
    r"|scaled_fp8"
)


def signs(checkpoint: Checkpoint, config: Mapping[str, Any]) -> list[str]:
    """What tells that the checkpoint holds codes. config: of its model. 8-bit floats without scales are plain numbers."""
    said = []
    if config.get("quantization_config"):
        said.append("its config.json has a quantization_config")
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


def problems(checkpoint: Checkpoint, config: Mapping[str, Any]) -> list[str]:
    """A sentence, if the checkpoint holds codes."""
    said = signs(checkpoint, config)
    if not said:
        return []
    return [
        f"{checkpoint.path}: is quantised ({'; '.join(said)}), and codes of different scales can't be averaged; convert"
        " it to bfloat16 first, and if its weights are plain numbers, remove quantization_config from its config.json"
    ]
