"""Make a safetensors file a unified checkpoint, which Trainers resume from: with an index, and lm_head where it is tied."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Sequence
from typing import Any

from ..checkpoints.names import EMBEDDINGS, HEAD, last_word

_COPIED = 16 << 20  # bytes at a time


def write_index(file: str, index: str) -> None:
    """Write to the path `index` that all tensors of a safetensors file are in it."""
    header, start = _header(file)
    names = [name for name in header if name != "__metadata__"]
    content = {
        "metadata": {"total_size": os.path.getsize(file) - start},
        "weight_map": dict.fromkeys(names, os.path.basename(file)),
    }
    with open(index, "w", encoding="utf-8") as stream:
        json.dump(content, stream, indent=2)


def names_in(index: str) -> Sequence[str]:
    """Return the names of the tensors in an index."""
    with open(index, encoding="utf-8") as stream:
        return list(json.load(stream)["weight_map"])


def add_head(file: str) -> None:
    """Write the embedding's elements into a safetensors file once more, as lm_head, which loaders of models derive from it.

    A file in Hugging Face's layout leaves a tied lm_head out, and PaddleFormers' Trainer doesn't resume from one without it.
    """
    header, start = _header(file)
    embedding = next((name for name in header if last_word(name) in EMBEDDINGS), None)
    if HEAD in header or embedding is None:
        return
    begin, end = header[embedding]["data_offsets"]
    size = os.path.getsize(file) - start
    header[HEAD] = {**header[embedding], "data_offsets": [size, size + end - begin]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with open(file, "rb") as source, open(f"{file}.partial", "wb") as target:
        target.write(struct.pack("<Q", len(text)) + text)
        source.seek(start)
        shutil.copyfileobj(source, target, _COPIED)
        source.seek(start + begin)
        left = end - begin
        while left:
            left -= target.write(source.read(min(left, _COPIED)))
    os.replace(f"{file}.partial", file)


def _header(file: str) -> tuple[dict[str, Any], int]:
    """Return the header of a safetensors file, and the offset at which the elements begin."""
    with open(file, "rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        return json.loads(stream.read(length)), 8 + length
