"""safetensors: header length (8 bytes, little-endian), JSON header, tensors back to back."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence

from . import Frame, Held

METADATA = "__metadata__"


def frame(tensors: Sequence[Held], format: str | None) -> Frame:
    header: dict[str, object] = {METADATA: {"format": format}} if format is not None else {}
    ends = [0]
    for name, dtype, shape, nbytes in tensors:
        header[name] = {"dtype": dtype.tag, "shape": list(shape), "data_offsets": [ends[-1], ends[-1] + nbytes]}
        ends.append(ends[-1] + nbytes)
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    head = struct.pack("<Q", len(text)) + text
    starts = [len(head) + end for end in ends]
    return Frame(((0, head),), tuple(starts[:-1]), starts[-1])


def problems(tensors: Sequence[Held]) -> list[str]:
    return [
        f"tensor {tensor.name!r} is called as safetensors calls what isn't one; pass --save_format pdparams, or rename it"
        for tensor in tensors
        if tensor.name == METADATA
    ]
