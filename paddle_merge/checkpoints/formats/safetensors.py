"""Read and write safetensors files, single and sharded.

A file is: the header's length (8 bytes, little-endian), the JSON header, then the tensors without gaps.
The header is read and checked here rather than by the safetensors library because the merge needs the byte offset of every
tensor, which the library doesn't report.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ...dtypes import BFLOAT16, BY_TAG, UINT16, DType
from ...errors import CheckpointError
from ...parsing import shown
from ..json_files import MAX_JSON, open_regular, parse_json, read_json
from ..tensors import MAX_DIMS, MAX_SIZE, Checkpoint, StoredEntry
from .folder import misplaced
from .header import Header, Held

METADATA = "__metadata__"  # the header's key that is not a tensor
SAME = 64  # headers that are kept, parsed, for files that have the same one


# --- reading ---------------------------------------------------------------------------------------------------------


def open_files(path: str, folder: str, files: list[str], weight_map: dict[str, str] | None) -> Checkpoint:
    """Read the headers of `files`, which are one checkpoint.

    path: what the user calls it. folder: where its config.json is. weight_map: tensor name -> shard name, which must agree
    with what the files hold; None without an index. Raises CheckpointError listing everything wrong.
    """
    tensors: dict[str, StoredEntry] = {}
    formats: set[str | None] = set()
    everything: dict[str, str] = {}
    problems: list[str] = []
    for file in files:
        try:
            entries, metadata = _read_header(path, file, folder)
        except CheckpointError as error:
            problems += error.problems
            continue
        formats.add(metadata.get("format"))
        everything |= metadata
        for entry in entries:
            if entry.name in tensors:
                problems.append(f"{file}: tensor {entry.name!r} is also in {tensors[entry.name].file}")
            tensors[entry.name] = entry
    if weight_map is not None and not problems:
        problems = misplaced(path, {name: entry.file for name, entry in tensors.items()}, weight_map)
    if len(formats) > 1:
        problems.append(f"{path}: its shards have different metadata formats: {sorted(map(str, formats))}")
    if problems:
        raise CheckpointError(problems)
    return Checkpoint(path, folder, next(iter(formats)), tensors, metadata=everything)


def _read_header(path: str, file: str, folder: str) -> tuple[list[StoredEntry], Mapping[str, str]]:
    """Return one file's tensors, in order of offset, and its metadata. Raises CheckpointError listing everything wrong."""
    try:
        with open_regular(file) as stream:
            size = os.fstat(stream.fileno()).st_size
            prefix = stream.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            if not 2 <= length <= min(size - 8, MAX_JSON):
                raise CheckpointError(f"{file}: is not a safetensors file, or is truncated within its header")
            text = stream.read(length)
    except OSError as error:
        raise CheckpointError(f"{file}: can't be read ({error.strerror})") from None
    try:
        rows, metadata = _parsed(text)
    except CheckpointError as error:
        raise CheckpointError([f"{file}: {problem}" for problem in error.problems]) from None
    end = 8 + length + (rows[-1].stop if rows else 0)
    if end != size:
        fault = "is truncated" if end > size else "is longer than its header says"
        raise CheckpointError(f"{file}: {fault} ({size} bytes, but the header describes {end})")
    first = 8 + length
    entries = [
        StoredEntry(name, dtype, shape, file, first + start, (), (path, name)) for name, dtype, shape, start, _ in rows
    ]
    if any(entry.dtype is UINT16 for entry in entries):
        entries = [_uint16_is_bfloat16(entry, folder) for entry in entries]
    return entries, metadata


class _Row(NamedTuple):
    """A tensor as a header has it. start, stop: its bytes, counted from the first tensor's."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    start: int
    stop: int


@functools.lru_cache(SAME)  # of models that are merged, most have the same headers
def _parsed(text: bytes) -> tuple[Sequence[_Row], Mapping[str, str]]:
    """Return the tensors that a header describes, in order of offset, and its metadata.

    Raises CheckpointError listing everything wrong, in sentences without a subject or about a tensor.
    """
    try:
        header = parse_json(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"its header is not valid JSON ({error})") from None
    if not isinstance(header, dict):
        raise CheckpointError("its header is not a JSON object")
    metadata = header.pop(METADATA, None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError("its __metadata__ is not a map from strings to strings")

    problems: list[str] = []
    rows: list[_Row] = []
    for name, info in header.items():
        try:
            rows.append(_row(name, info))
        except CheckpointError as error:
            problems += error.problems
    if problems:
        raise CheckpointError(problems)

    rows.sort(key=lambda row: row[3:])
    end = 0
    for row in rows:
        if row.start != end:
            raise CheckpointError(f"tensor {row.name!r} overlaps another, or leaves a gap before it")
        end = row.stop
    return rows, metadata


def _row(name: str, info: Any) -> _Row:
    """Return the tensor that one entry of the header describes. Raises CheckpointError."""
    if not isinstance(info, dict) or len(info) > 3:  # a further field might change what the three known ones mean
        raise CheckpointError(f"tensor {name!r} has a malformed header entry")
    tag, shape, offsets = info.get("dtype"), info.get("shape"), info.get("data_offsets")
    dtype = BY_TAG.get(tag) if isinstance(tag, str) else None
    if dtype is None:
        said = tag if isinstance(tag, str) else shown(tag)
        raise CheckpointError(f"tensor {name!r} has dtype {said}, which isn't supported; convert it to bfloat16 first")
    if not (isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2 and _naturals([*shape, *offsets])):
        raise CheckpointError(f"tensor {name!r} has a malformed shape or data_offsets")
    size = math.prod(shape)
    if (size or math.prod(filter(None, shape))) >= MAX_SIZE:
        raise CheckpointError(f"tensor {name!r} has the shape {shape}, which is too large to address")
    start, stop = offsets
    nbytes = size * dtype.itemsize
    if stop - start != nbytes:
        raise CheckpointError(
            f"tensor {name!r} is {dtype.name} {shape}, {nbytes} bytes, but its data_offsets span {stop - start}"
        )
    return _Row(name, dtype, tuple(shape), start, stop)


def _naturals(values: list[Any]) -> bool:
    """Return whether a shape and the two offsets behind it are non-negative int64s, and the shape isn't too long."""
    return len(values) <= MAX_DIMS + 2 and not [one for one in values if type(one) is not int or not 0 <= one < 2**63]


def _uint16_is_bfloat16(entry: StoredEntry, folder: str) -> StoredEntry:
    """Return a U16 tensor as bfloat16, and others as they are.

    PaddleNLP writes bfloat16 with the tag U16. It is bfloat16 if config.json says so, or in an adapter of PaddleNLP
    (lora_config.json). Raises CheckpointError otherwise, since no weights are uint16.
    """
    if entry.dtype is not UINT16:
        return entry
    if os.path.isfile(os.path.join(folder, "lora_config.json")):
        return dataclasses.replace(entry, dtype=BFLOAT16)
    path = os.path.join(folder, "config.json")
    config = read_json(path) if os.path.isfile(path) else {}
    says = config.get("dtype", config.get("torch_dtype")) if isinstance(config, dict) else None
    if says != "bfloat16":
        raise CheckpointError(
            f"{entry.file}: tensor {entry.name!r} has dtype U16, which PaddleNLP writes for bfloat16, but {path} doesn't"
            ' say "dtype": "bfloat16"; add that if these are bfloat16 weights'
        )
    return dataclasses.replace(entry, dtype=BFLOAT16)


# --- writing ---------------------------------------------------------------------------------------------------------


def header(tensors: Sequence[Held], format: str | None) -> Header:
    """Return the header of a file of these tensors, in this order. format: the metadata's `format`; None for no metadata."""
    header: dict[str, object] = {METADATA: {"format": format}} if format is not None else {}
    ends = [0]
    for name, dtype, shape, nbytes in tensors:
        header[name] = {"dtype": dtype.tag, "shape": list(shape), "data_offsets": [ends[-1], ends[-1] + nbytes]}
        ends.append(ends[-1] + nbytes)
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    head = struct.pack("<Q", len(text)) + text
    starts = [len(head) + end for end in ends]
    return Header(((0, head),), tuple(starts[:-1]), starts[-1])


def problems(tensors: Sequence[Held]) -> list[str]:
    """Return a sentence on each tensor that a safetensors file can't hold: one with the name of the metadata."""
    return [
        f"tensor {tensor.name!r} has the name that safetensors reserves for metadata; rename it, or pass"
        " --save_format pdparams"
        for tensor in tensors
        if tensor.name == METADATA
    ]
