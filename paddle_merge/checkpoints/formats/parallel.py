"""Read models that tensor-, pipeline- and expert-parallel training saved per rank.

A rank has one file, such as model_state.tp00_pp01.pdparams, or an index and shards, such as
model.safetensors.index.tp00_pp01.json. Pipeline stages hold different layers. Expert-parallel ranks hold different experts,
under the names that these have in the whole model, and all else alike. Tensor-parallel ranks hold a slice of some weights
and all of others, and the files don't say which: a weight is joined if its shape as config.json gives it can be reached in
exactly one way; otherwise the checkpoint is refused.
"""

from __future__ import annotations

import dataclasses
import glob
import itertools
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import CheckpointError, MalformedError, WorkError
from ..json_files import read_json
from ..names import layer_of
from ..parts import as_boxes, assemble
from ..tensors import Checkpoint, StoredEntry, TensorEntry
from .any import open_file, open_index
from .folder import RANK

_REMEDY = "save it in one piece, as PaddleNLP does with save_pretrained(merge_tensor_parallel=True) or unified_checkpoint"
_AXES = ("tp", "pp", "moe")
Rank = tuple[int, int, int]  # number along each of the axes: tensor-parallel rank, pipeline stage, expert-parallel rank
_EXPERT = re.compile(r"\.experts\.(\d+)\.")
# What config.json calls the number of experts.
_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_COMPARED = 1 << 16  # bytes at the beginning of what expert-parallel ranks hold alike


def rank_files(path: str, single: str) -> dict[Rank, str]:
    """Return, by rank, the files of a folder that hold `single` (a file name) per rank; or its index per rank.

    Raises CheckpointError if two files are of one rank, as those of trainings with different parallelism may be.
    """
    stem, ending = os.path.splitext(single)
    found: dict[Rank, str] = {}
    for file in sorted(glob.glob(os.path.join(glob.escape(path), f"{stem}.*{ending}"))):
        if (match := RANK.fullmatch(os.path.basename(file)[len(stem) + 1 : -len(ending)])) and any(match.groups()):
            tp, pp, moe = (int(number or 0) for number in match.groups())
            if other := found.get((tp, pp, moe)):
                names = " and ".join(map(os.path.basename, (other, file)))
                raise CheckpointError(f"{path}: has {names}, of different trainings; remove those of one of them")
            found[tp, pp, moe] = file
    return found


def open_ranks(path: str, files: Mapping[Rank, str], indexes: Mapping[Rank, str]) -> Checkpoint:
    """Read the headers of all ranks' files and return the whole model.

    path: the folder. files, indexes: the weights or the index of each rank. Raises CheckpointError listing everything
    wrong, such as a rank that is missing.
    """
    saved = {*files, *indexes}
    ranks = sorted(saved)
    split, stages, parts = (1 + max(rank[axis] for rank in ranks) for axis in range(len(_AXES)))
    every = itertools.product(range(split), range(stages), range(parts))
    if missing := list(itertools.islice((rank for rank in every if rank not in saved), 8)):
        used = [axis for axis, size in enumerate((split, stages, parts)) if size > 1]
        shown = ", ".join("_".join(f"{_AXES[axis]}{rank[axis]:02d}" for axis in used) for rank in missing)
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

    file = os.path.join(path, "config.json")
    config = read_json(file) if os.path.isfile(file) else {}
    config = config if isinstance(config, dict) else {}
    tensors: dict[str, TensorEntry] = {}
    wrong: dict[str, list[str]] = {}  # what is wrong -> the names of tensors
    for stage in range(stages):
        held = []
        for number in range(split):
            held.append(_all_experts([opened[number, stage, part].tensors for part in range(parts)], wrong))
        for name in dict.fromkeys(name for one in held for name in one):
            try:
                if any(name not in one for one in held):
                    raise MalformedError(f"is missing in some tensor-parallel ranks; {_REMEDY}")
                entry = _join(name, [one[name] for one in held], config)
                if name in tensors and not _alike([tensors[name], entry]):  # a tied embedding is in the first and the last
                    raise MalformedError(f"should be the same in all pipeline stages that hold it, but differs; {_REMEDY}")
                tensors[name] = entry
            except MalformedError as error:
                wrong.setdefault(str(error), []).append(name)
    for why, (name, *others) in wrong.items():
        like = f" (like {len(others)} other{'s' * (len(others) > 1)})" if others else ""
        problems.append(f"{path}: tensor {name!r}{like} {why}")
    if problems := problems or [f"{path}: {lack}" for lack in _lacking(tensors, config)]:
        raise CheckpointError(problems)
    first = opened[min(opened)]
    return Checkpoint(path, path, first.format, tensors, first.kind)


def _all_experts(parts: Sequence[Mapping[str, TensorEntry]], wrong: dict[str, list[str]]) -> dict[str, TensorEntry]:
    """Return the tensors of all expert-parallel ranks, by name. What is wrong with which of them is added to `wrong`."""
    found: dict[str, TensorEntry] = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        held = [part[name] for part in parts if name in part]
        found[name] = held[0]
        if len(held) == 1:
            continue
        try:
            if "experts" in name.split(".") or len(held) < len(parts):
                raise MalformedError(f"is in several expert-parallel ranks; {_REMEDY}")
            if not _alike(held):
                raise MalformedError(f"should be the same in all expert-parallel ranks, but differs; {_REMEDY}")
        except MalformedError as error:
            wrong.setdefault(str(error), []).append(name)
    return found


def _alike(entries: Sequence[TensorEntry]) -> bool:
    """Return whether the tensors are of one shape and dtype, and begin with the same bytes. Raises MalformedError."""
    first = entries[0]
    same = all((entry.shape, entry.dtype) == (first.shape, first.dtype) for entry in entries)
    return same and not _differ([_beginning(entry) for entry in entries])


def _beginning(entry: TensorEntry) -> TensorEntry:
    """Return the first elements of a tensor, where they lie one behind the other; else all of it.

    Ranks that hold the same weights were trained with the same sums of gradients. If they weren't, all would differ.
    """
    count = _COMPARED // entry.dtype.itemsize
    if isinstance(entry, StoredEntry) and not entry.parts and math.prod(entry.shape) > count:
        return dataclasses.replace(entry, shape=(count,))
    return entry


def _lacking(tensors: Mapping[str, TensorEntry], config: Mapping[str, Any]) -> list[str]:
    """Return sentences on the last ranks along an axis that are missing, as config.json counts layers, experts and tokens.
    An adapter needn't have all of them."""
    if any(".lora_" in name for name in tensors):
        return []
    numbers, words = [config.get(name) for name in _COUNTS], config.get("vocab_size")
    rows = [entry.shape[0] for name, entry in tensors.items() if name.endswith("embed_tokens.weight") and entry.shape]
    counted = {
        "layers": (config.get("num_hidden_layers"), (layer[1] for layer in map(layer_of, tensors) if layer)),
        "experts": (
            next((number for number in numbers if type(number) is int), None),
            (int(match[1]) for match in map(_EXPERT.search, tensors) if match),
        ),
        # A tensor-parallel rank's slice of the embedding; other numbers of rows may be meant.
        "tokens": (words, (count - 1 for count in rows if type(words) is int and count and words % count == 0)),
    }
    return [
        f"config.json says {said} {what}, and the files have {found}; the files of all ranks are needed"
        for what, (said, held) in counted.items()
        if type(said) is int and 0 < (found := max(held, default=-1) + 1) < said
    ]


def _join(name: str, entries: Sequence[TensorEntry], config: Mapping[str, Any]) -> TensorEntry:
    """Join a weight from the tensors of all tensor-parallel ranks. Raises MalformedError unless there is exactly one way."""
    first, count = entries[0], len(entries)
    if count == 1:
        return first
    if any((entry.shape, entry.dtype) != (first.shape, first.dtype) for entry in entries):
        raise MalformedError(f"differs in shape or dtype between tensor-parallel ranks; {_REMEDY}")
    wholes = _whole_shapes(name, first.shape, config)
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


def _whole_shapes(name: str, shape: tuple[int, ...], config: Mapping[str, Any]) -> list[tuple[int, ...]]:
    """Return the shapes that a weight of this name may have in one piece, [in, out]; an empty list if that isn't known.

    shape: its shape in a rank, which gives the rank of an adapter's factors, [in, r] and [r, out].
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
    if "experts" in modules or kind not in ("weight", "bias", "lora_A", "lora_B"):
        return []
    if kind.startswith("lora_"):
        both = linear.get(module, ()) if len(shape) == 2 else ()
        return [(both[0], shape[1]) if kind == "lora_A" else (shape[0], both[1])] if both else []
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
