"""Write the index of a safetensors file: Trainers take a folder with one for a unified checkpoint."""

from __future__ import annotations

import json
import os

from safetensors import safe_open


def write_index(file: str, index: str) -> None:
    """Write to the path `index` that all tensors of a safetensors file are in it."""
    with safe_open(file, framework="np") as opened:
        names = list(opened.keys())
    with open(file, "rb") as stream:
        header = int.from_bytes(stream.read(8), "little")
    content = {
        "metadata": {"total_size": os.path.getsize(file) - 8 - header},
        "weight_map": dict.fromkeys(names, os.path.basename(file)),
    }
    with open(index, "w", encoding="utf-8") as stream:
        json.dump(content, stream, indent=2)
