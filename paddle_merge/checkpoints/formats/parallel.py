"""Read models that tensor- and pipeline-parallel training saved per rank.

A rank has one file, such as model_state.tp00_pp01.pdparams, or an index and shards, such as
model.safetensors.index.tp00_pp01.json. Pipeline stages hold different layers. Tensor-parallel ranks hold a slice of some
weights and all of others, and the files don't say which: a weight is joined if its shape as config.json gives it can be
reached in exactly one way; otherwise the checkpoint is refused.
"""

from __future__ import annotations

import dataclasses
import glob
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import CheckpointError, MalformedError, WorkError
from ..json_files import read_json
from ..parts import as_boxes, assemble
from ..tensors import Checkpoint, TensorEntry
from .any import open_file, open_index

_REMEDY = "save it in one piece, as PaddleNLP does with save_pretrained(merge_tensor_parallel=True) or unified_checkpoint"
Rank = tuple[int, int]  # (tensor-parallel rank, pipeline stage)


def rank_files(path: str, single: str) -> dict[Rank, str]:
    """Return, by rank, the files of a folder that hold `single` (a file name) per rank; or its index per rank."""
    stem, ending = os.path.splitext(single)
    found = {}
    for file in glob.glob(os.path.join(glob.escape(path), f"{stem}.*{ending}")):
        rank = os.path.basename(file)[len(stem) : -len(ending)]
        match = re.fullmatch(r"\.(?:tp(\d{2,4}))?_?(?:pp(\d{2,4}))?", rank)
        if match and (match[1] or match[2]):
            found[int(match[1] or 0), int(match[2] or 0)] = file
    return found


def open_ranks(path: str, files: Mapping[Rank, str], indexes: Mapping[Rank, str]) -> Checkpoint:
    """Read the headers of all ranks' files and return the whole model.

    path: the folder. files, indexes: the weights or the index of each rank. Raises CheckpointError listing everything
    wrong, such as a rank that is missing.
    """
    ranks = sorted({*files, *indexes})
    split, stages = (1 + max(rank[axis] for rank in ranks) for axis in (0, 1))
    missing = [(tp, pp) for pp in range(stages) for tp in range(split) if (tp, pp) not in ranks]
    if missing:
        shown = ", ".join(f"tp{tp:02d}_pp{pp:02d}" for tp, pp in missing[:8])
        raise CheckpointError(f"{path}: has files of {len(ranks)} ranks, but none of {shown}; the files of all are needed")
    opened: dict[Rank, Checkpoint] = {}
    problems: list[str] = []
    for rank in ranks:
        try:
            if rank in indexes:
                opened[rank] = open_index(path, indexes[rank], files.get(rank))
            else:
                opened[rank] = open_file(files[rank])
        except CheckpointError as error:
            problems += error.problems
    if problems:
        raise CheckpointError(problems)

    config = os.path.join(path, "config.json")
    sizes = read_json(config) if split > 1 and os.path.isfile(config) else {}
    tensors: dict[str, TensorEntry] = {}
    for stage in range(stages):
        held = [opened[number, stage].tensors for number in range(split)]
        for name in dict.fromkeys(name for one in held for name in one):
            try:
                if name in tensors:
                    raise MalformedError(f"is in several pipeline stages; {_REMEDY}")
                if any(name not in one for one in held):
                    raise MalformedError(f"is missing in some tensor-parallel ranks; {_REMEDY}")
                tensors[name] = _join(name, [one[name] for one in held], sizes if isinstance(sizes, dict) else {})
            except MalformedError as error:
                problems.append(f"{path}: tensor {name!r} {error}")
    if problems:
        raise CheckpointError(problems)
    first = opened[min(opened)]
    return Checkpoint(path, path, first.format, tensors, first.kind)


def _join(name: str, entries: Sequence[TensorEntry], config: Mapping[str, Any]) -> TensorEntry:
    """Join a weight from the tensors of all tensor-parallel ranks. Raises MalformedError unless there is exactly one way."""
    first, count = entries[0], len(entries)
    if count == 1:
        return first
    if any((entry.shape, entry.dtype) != (first.shape, first.dtype) for entry in entries):
        raise MalformedError(f"differs in shape or dtype between tensor-parallel ranks; {_REMEDY}")
    wholes = _whole_shapes(name, config)
    if re.search(r"norm\d*\.(weight|bias)$", name) and len(first.shape) == 1:
        wholes = [first.shape]  # every rank has all of it
    if not wholes:
        raise MalformedError(
            f"may or may not be split among tensor-parallel ranks: config.json doesn't give its whole shape; {_REMEDY}"
        )
    if first.shape in wholes:
        if _differ(entries):
            raise MalformedError(f"should be the same in all tensor-parallel ranks, but differs; {_REMEDY}")
        return first
    ways = [
        (axis, whole)
        for whole in wholes
        for axis in range(len(first.shape))
        if tuple(size * (count if at == axis else 1) for at, size in enumerate(first.shape)) == whole
    ]
    if len(ways) != 1:
        raise MalformedError(
            f"is {list(first.shape)} in each of {count} tensor-parallel ranks, which can't be joined to {list(wholes[0])},"
            f" the shape by config.json, in exactly one way; {_REMEDY}"
        )
    axis, whole = ways[0]
    parts = []
    for number, entry in enumerate(entries):
        for part in as_boxes(entry):
            at = tuple(start + number * first.shape[axis] * (place == axis) for place, start in enumerate(part.at))
            parts.append(dataclasses.replace(part, at=at))
    return assemble(name, first.dtype, whole, parts)


def _whole_shapes(name: str, config: Mapping[str, Any]) -> list[tuple[int, ...]]:
    """Return the shapes that a weight of this name may have in one piece, [in, out]; an empty list if that isn't known.

    Fused weights have none: the slices of ranks interleave, so concatenating them would be wrong.
    """
    sizes = [config.get(size) for size in ("hidden_size", "num_attention_heads", "intermediate_size", "vocab_size")]
    sizes.append(config.get("num_key_value_heads") or sizes[1])
    if not all(type(size) is int and size > 0 for size in sizes):
        return []
    hidden, heads, inner, words, keys = map(int, sizes)  # type: ignore[arg-type]
    width = config.get("head_dim") or hidden // heads
    if type(width) is not int or width < 1:
        return []
    linear = {
        "q_proj": (hidden, heads * width),
        "k_proj": (hidden, keys * width),
        "v_proj": (hidden, keys * width),
        "o_proj": (heads * width, hidden),
        "gate_proj": (hidden, inner),
        "up_proj": (hidden, inner),
        "down_proj": (inner, hidden),
    }
    *modules, module, kind = ["", "", *name.split(".")]
    if "experts" in modules or kind not in ("weight", "bias"):
        return []
    if module in linear:
        return [linear[module] if kind == "weight" else linear[module][1:]]
    if module == "embed_tokens" and kind == "weight":
        return [(words, hidden)]
    if module == "lm_head" and kind == "weight":
        return [(hidden, words), (words, hidden)]
    return []


def _differ(entries: Sequence[TensorEntry]) -> bool:
    """Return whether the tensors hold different bytes; reads them. Raises MalformedError if they can't be read."""
    from ..compare import differing

    try:
        return bool(differing(entries))
    except WorkError as error:
        raise MalformedError(f"can't be compared ({error})") from None
