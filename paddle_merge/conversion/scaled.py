"""Read quantised checkpoints as the numbers that their codes stand for: find the scales of each tensor of codes.

Only headers are read here; scaled_reader.py computes the numbers, block by block. What can't be read for certain is refused.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import field

from ..checkpoints.config_json import read_config
from ..checkpoints.quantisation import FP8, Quantisation, quantisation
from ..checkpoints.quantised import refusal, signs
from ..checkpoints.scaled import Grid, ScaledEntry
from ..checkpoints.tensors import Checkpoint, Origin, StoredEntry, TensorEntry, origins, stored
from ..dtypes import FLOAT8_E8M0FNU
from ..errors import CheckpointError, MalformedError
from ..parsing import tensors_named
from ..records import record
from .packed import PACKED, packed_codes, packed_zeros

# Last words of names of scales that are for quantised activations, or for the cache of keys and values.
_NOT_OF_WEIGHTS = re.compile(
    r"(.*_)?(input|output|activation|act|[kqv]|kv|kv_cache)_(global_)?(scale|zero_point)s?(_inv|_ub)?"
)
_DROPPED = "a scale of activations or of cached keys and values, which weights of plain numbers don't need"
_BYTES = ("int8", "uint8")
_SCALES = ("bfloat16", "float16", "float32", "float8_e8m0fnu")


@record(frozen=True)
class Numbers:
    """Hold a checkpoint as numbers. note: a sentence on what was done; "" if it isn't quantised. left_out: why tensors are
    not read, by their origins."""

    checkpoint: Checkpoint
    note: str = ""
    left_out: Mapping[Origin, str] = field(default_factory=dict)


def as_numbers(checkpoint: Checkpoint) -> Numbers:
    """Return a checkpoint with the numbers that its codes stand for, in place of codes and scales.

    One that isn't quantised is returned as it is. Raises CheckpointError with the reason if its weights can't be read.
    """
    config = read_config(checkpoint.folder)
    if not (said := signs(checkpoint, config)):
        return Numbers(checkpoint)
    meant = quantisation(config)
    wrong: dict[str, list[str]] = {meant.refused: []} if meant.refused else {}
    held = checkpoint.tensors
    codes = {
        name: name for name, entry in held.items() if len(entry.shape) > 1 and entry.dtype.name in (*meant.codes, *_BYTES)
    }
    if meant.packed:
        codes |= {name.removesuffix(PACKED): name for name in held if name.endswith(PACKED)}
    scales = {name: found for name in codes for found in _scale_names(name) if found in held}
    shapes = [f"{name}_shape" for name, at in codes.items() if at != name and f"{name}_shape" in held]
    used = {*scales.values(), *shapes, *(f"{name}_zero_point" for name in scales)}
    dropped = [name for name in held if name not in used and _NOT_OF_WEIGHTS.fullmatch(name.rpartition(".")[2])]
    used |= set(dropped)
    read, kinds = dict[str, ScaledEntry](), Counter[str]()  # by the name that the codes are stored under
    for name, at in codes.items() if not wrong else ():
        try:
            if name in scales:
                read[at], kind = _scaled(name, scales[name], held, meant)
                kinds[kind] += 1
            elif at not in used and (at != name or held[at].dtype.name in meant.codes):
                raise MalformedError("has no scales")
        except MalformedError as error:
            wrong.setdefault(str(error), []).append(at)
    left = {at: entry for at, entry in held.items() if at not in used}
    unread = {at: entry for at, entry in left.items() if at not in read or read[at].name == at}
    if not wrong and (others := signs(dataclasses.replace(checkpoint, tensors=unread), {})):
        wrong[f"it isn't known what {others[0].partition(', ')[2].partition(' for one')[0]} means"] = []
    if wrong:
        reasons = [f"{tensors_named(names)} {reason}" if names else reason for reason, names in wrong.items()]
        raise CheckpointError([refusal(checkpoint, said, reason) for reason in reasons])
    entries = [read.get(at, entry) for at, entry in left.items()]
    why = {**dict.fromkeys(dropped, _DROPPED), **dict.fromkeys(shapes, "the shape of a packed weight")}
    left_out = {origin: reason for name, reason in why.items() for origin in origins(held[name])}
    found = dataclasses.replace(checkpoint, tensors={entry.name: entry for entry in entries})
    return Numbers(found, _note(checkpoint, meant, kinds, len(dropped)), left_out)


def _note(checkpoint: Checkpoint, meant: Quantisation, kinds: Mapping[str, int], dropped: int) -> str:
    """Return a sentence on what was done. kinds: of codes and scales, with the number of tensors of each."""
    if not kinds:
        return (
            f"{checkpoint.path}: its config.json has a quantization_config, but its weights are read as the numbers they are"
        )
    listed = ", ".join(f"{count} tensors of {kind}" if count > 1 else f"1 tensor of {kind}" for kind, count in kinds.items())
    more = f"; {dropped} scales of activations or of cached keys and values are left out" if dropped else ""
    return f"{checkpoint.path}: is quantised, and read as {meant.dtype.name}: {listed}{more}"


def _scale_names(name: str) -> Iterator[str]:
    """Yield the names that the scales of a tensor may have; one that has several is refused."""
    yield f"{name}_scale_inv"  # DeepSeek-V3; it is multiplied with, all the same
    yield f"{name}_scale"
    module, _, word = name.rpartition(".")
    if word == "weight":
        yield f"{module}.scale"


def _scaled(name: str, scale_name: str, tensors: Mapping[str, TensorEntry], meant: Quantisation) -> tuple[ScaledEntry, str]:
    """Return a tensor of codes with its scales, and what it is in words. Raises MalformedError."""
    scales, bits = stored(tensors[scale_name]), 0
    if name in tensors:
        codes = stored(tensors[name])
        if codes.dtype.name not in meant.codes:
            raise MalformedError(
                f"is {codes.dtype.name}, and {meant.method or 'a model without quantization_config'} has no such weights"
            )
    else:
        codes, bits = packed_codes(name, tensors)
    if not meant.method and not scale_name.endswith("_scale_inv"):
        raise MalformedError("has scales, but its config.json has no quantization_config, which says what they mean")
    if f"{name}_g_idx" in tensors:
        raise MalformedError("has its columns in another order (g_idx), which can't be read")
    if meant.exponents and scales.dtype.name == "uint8":
        scales = dataclasses.replace(scales, dtype=FLOAT8_E8M0FNU)
    if scales.dtype.name not in _SCALES:
        raise MalformedError(f"has scales of {scales.dtype.name}, which can't be read")
    grid, zero = _grid(codes.shape, scales, meant), 1 << bits >> 1
    if (zeros := tensors.get(f"{name}_zero_point")) is not None:
        in_words = bits > 0 and zeros.dtype.name == "int32"  # then they count from 0, as the codes do
        shape = grid.scales.shape
        its = packed_zeros(stored(zeros), bits, shape) if in_words else _zeros(stored(zeros), shape)
        grid, zero = dataclasses.replace(grid, zeros=its), 0 if in_words else zero
    entry = ScaledEntry(name, meant.dtype, codes.shape, codes, (grid,), zero)
    block, whole = grid.block[-2:], codes.shape[-2:]
    per = "matrix" if block == whole else "row" if block == (1, whole[1]) else f"{block[0]} x {block[1]} block"
    return entry, f"{f'int{bits}' if bits else codes.dtype.name} with a scale per {per}"


def _zeros(zeros: StoredEntry, shape: tuple[int, ...]) -> StoredEntry:
    """Return zero points in the shape of their scales. Raises MalformedError."""
    if zeros.dtype.name not in ("int8", *FP8) or math.prod(zeros.shape) != math.prod(shape):
        raise MalformedError(f"has zero points of {zeros.dtype.name} {list(zeros.shape)}, which can't be read")
    return _reshaped(zeros, shape)


def _grid(shape: tuple[int, ...], scales: StoredEntry, meant: Quantisation) -> Grid:
    """Return the scales of a tensor of this shape. Raises MalformedError if it isn't certain of which block each is."""
    held, block = _blocks(shape, scales.shape, meant.blocks)
    zeros = (0,) * len(shape)
    return Grid(zeros, shape, _reshaped(scales, held), block, zeros)


@functools.lru_cache
def _blocks(
    shape: tuple[int, ...], held: tuple[int, ...], sizes: tuple[tuple[int, int], ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shape of scales, with as many dimensions as the tensor, and the size of the blocks that have one each.

    shape, held: of the tensor and of its scales. sizes: of blocks (rows, columns) that config.json names. Raises
    MalformedError if it isn't certain which it is.
    """
    *stack, rows, columns = shape
    given = held
    if math.prod(held) == 1:
        held = (1,) * len(shape)
    elif held == (*stack, rows):  # one per row
        held = (*held, 1)
    elif held == tuple(stack):  # one per matrix
        held = (*held, 1, 1)
    found: dict[tuple[int, int], tuple[int, ...]] = {}
    for block in [*sizes, (rows, columns), (1, columns)]:
        high, wide = max(1, min(block[0], rows)), max(1, min(block[1], columns))
        for leading in (stack, [1] * len(stack)):  # a scale for each matrix of a stack, or for all of them
            if held == (*leading, -(-rows // high), -(-columns // wide)):
                apart = (size if count == 1 else 1 for size, count in zip(stack, leading, strict=True))
                found.setdefault((high, wide), (*apart, *(max(1, size) for size in block)))
    if len(found) == 1:
        return held, next(iter(found.values()))
    listed = ", ".join(f"{high} x {wide}" for high, wide in sizes)
    said = f"config.json says blocks of {listed}" if listed else "config.json says nothing of blocks"
    raise MalformedError(f"is {list(shape)} and has scales {list(given)}, which don't fit ({said})")


def _reshaped(entry: StoredEntry, shape: tuple[int, ...]) -> StoredEntry:
    """Return a stored tensor in another shape of as many elements. Raises MalformedError if it is stored in parts."""
    if entry.shape == shape:
        return entry
    if entry.parts:
        raise MalformedError("has scales that are stored in parts; save it in one piece")
    return dataclasses.replace(entry, shape=shape)
