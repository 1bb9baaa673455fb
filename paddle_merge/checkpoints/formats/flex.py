"""Read Paddle's distributed ("flex") checkpoints: N.metadata lists which box of which tensor is in which .distcp file."""

from __future__ import annotations

import dataclasses
import glob
import math
import os
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from ...errors import CheckpointError, MalformedError
from ...records import record
from ..names import last_word
from ..parts import as_boxes, assemble, boxes, row_major
from ..tensors import Checkpoint, Part, StoredEntry, stored
from ..views import repeated, select
from . import safetensors
from .arrays import naturals
from .folder import sniff
from .pdparams import read_tensors
from .pickles import MAX_STEPS, load, open_window
from .standins import Record

_MODULE = "paddle.distributed.flex_checkpoint.dcp.metadata"
_OLDER = "paddle.distributed.checkpoint.metadata"
WORDS: dict[tuple[str, str], Callable[..., Any]] = {
    (module, name): Record
    for module in (_MODULE, _OLDER)
    for name in ("Metadata", "LocalTensorMetadata", "LocalTensorIndex")
}
# The folders of a Trainer's checkpoint-N, by prefix.
_FOLDERS = {
    "model": "model_state",
    "master_weights": "master_weight",
    "adapter": "model_state",
}
# Folders that hold what an optimizer knows of parameters: their master weights, or moving averages of these (PaddleFormers).
_OPTIMIZERS = ("master_weight", "ema_state")
_MASTER = ".w_0"  # what Paddle's optimizers append to the name of a parameter


def metadata_folder(path: str, prefix: str) -> str | None:
    """Return the folder that holds the metadata: `path`, or the folder of this prefix in it; None if neither does."""
    for folder in (path, os.path.join(path, _FOLDERS.get(prefix, prefix))):
        if _versions(folder):
            return folder
    return None


def _versions(folder: str) -> list[int]:
    """Return the N of every N.metadata in a folder, in ascending order."""
    names = map(os.path.basename, glob.glob(os.path.join(glob.escape(folder), "*.metadata")))
    return sorted(int(found[1]) for name in names if (found := re.fullmatch(r"(\d{1,9})\.metadata", name)))


@record(frozen=True)
class Shard:
    """Describe a shard of a tensor: the box of `shape` elements from index `at` on.

    span: (start, stop) if the shard is only these of the box's elements, counted in row-major order; else None.
    """

    at: tuple[int, ...]
    shape: tuple[int, ...]
    span: tuple[int, int] | None

    @staticmethod
    def of(fields: Mapping[str, Any]) -> Shard:
        """Make a shard from the attributes of the metadata's LocalTensorMetadata or -Index. Raises MalformedError."""
        at, shape = fields.get("global_offset"), fields.get("local_shape")
        span = fields.get("flattened_range") if fields.get("is_flattened") else None
        if not naturals(at) or not naturals(shape) or len(at) != len(shape):
            raise MalformedError("has a shard without a position")
        if fields.get("is_flattened") and not (naturals(span) and len(span) == 2 and span[0] <= span[1]):
            raise MalformedError("has a flattened shard without a range")
        return Shard(at, shape, span)

    def parts(self, held: StoredEntry) -> list[Part]:
        """Return where the shard's elements are stored, as boxes of the whole tensor.

        held: the tensor of this name in the shard's file. Raises MalformedError if its size is not the shard's.
        """
        if self.span is None and held.shape != self.shape:
            raise MalformedError(f"should be {list(self.shape)} in {os.path.basename(held.file)}, but is {list(held.shape)}")
        start, stop = self.span or (0, held.nbytes // held.dtype.itemsize)
        if (stop - start) * held.dtype.itemsize != held.nbytes:
            raise MalformedError(f"has {held.nbytes} bytes in {os.path.basename(held.file)}, which its metadata contradicts")
        if self.span is None:
            return [
                dataclasses.replace(part, at=tuple(a + b for a, b in zip(self.at, part.at, strict=True)))
                for part in as_boxes(held)
            ]
        if held.parts:
            raise MalformedError("is flattened, and not stored as contiguous bytes; save it again with pickle protocol 4")
        found, before = [], 0
        for corner, box in boxes(self.shape, start, stop):
            at = tuple(a + c for a, c in zip(self.at, corner, strict=True))
            found.append(Part(held.file, held.offset + before * held.dtype.itemsize, at, box, row_major(box)))
            before += math.prod(box)
        return found


def open_folder(path: str, folder: str) -> Checkpoint:
    """Read the descriptions of the tensors of the checkpoint whose metadata is in `folder`; the highest N counts.

    path: what the user calls the checkpoint. Raises CheckpointError listing everything wrong with it.
    """
    file = os.path.join(folder, f"{_versions(folder)[-1]}.metadata")
    with open_window(file) as window:
        metadata = load(window, WORDS)
    try:
        shards, shapes = _read(metadata)
    except MalformedError as error:
        raise CheckpointError(f"{file}: {error}") from None

    problems: list[str] = []
    held: dict[str, dict[str, StoredEntry]] = {}
    for name in sorted({name for places in shards.values() for _, name in places}):
        if os.path.basename(name) != name or name in ("", ".", ".."):
            problems.append(f"{file}: names a file outside its folder: {name!r}")
            continue
        try:
            held[name] = _open(os.path.join(folder, name))
        except CheckpointError as error:
            problems += error.problems
    if problems:
        raise CheckpointError(problems)

    tensors = {}
    for key, places in shards.items():
        try:
            tensors[key] = _tensor(key, shapes.get(key), places, held)
        except MalformedError as error:
            problems.append(f"{file}: tensor {key!r} {error}")
    for name, entries in held.items():
        for key in entries:
            if key not in shards:
                problems.append(f"{os.path.join(folder, name)}: tensor {key!r} is not in the metadata")
    if problems:
        raise CheckpointError(problems)
    # gate_up_proj is Phi's, whose qkv_proj is [all q | all k | all v]: each rank has a slice of all three.
    phi = any(last_word(key) == "gate_up_proj" for key in tensors)
    split = [
        key for key in tensors if phi and last_word(key) == "qkv_proj" and len({shard.at for shard, _ in shards[key]}) > 1
    ]
    if split:
        raise CheckpointError(
            f"{file}: tensor {split[0]!r} is fused in each tensor-parallel rank separately, and can't be joined; save the"
            " model without tensor parallelism"
        )
    if os.path.basename(os.path.abspath(folder)) in _OPTIMIZERS:
        tensors = {key: stored(entry.renamed(_parameter(key, tensors))) for key, entry in tensors.items()}
    ordered = sorted(tensors.values(), key=lambda entry: (entry.file, entry.offset))
    return Checkpoint(path, path, "np", {entry.name: entry for entry in ordered}, "flex")


def _parameter(key: str, tensors: Collection[str]) -> str:
    """Return the name of the parameter that an optimizer's tensor, such as "norm.weight.w_0", is the master weight of.

    If the parameter itself is among the tensors, names stay as they are.
    """
    name = key.removesuffix(_MASTER)
    return name if name not in tensors else key


Places = dict[str, list[tuple[Shard, str]]]  # tensor name -> (shard, name of its file)


def _read(metadata: Any) -> tuple[Places, dict[str, tuple[int, ...]]]:
    """Return the shards of each tensor with their files, and the tensors' shapes where the metadata gives them.

    metadata: the stand-in of a Metadata object. Raises MalformedError.
    """
    fields = metadata.fields if isinstance(metadata, Record) else {}
    described, stored = fields.get("state_dict_metadata"), fields.get("storage_metadata")
    if not isinstance(described, dict) or not isinstance(stored, dict):
        raise MalformedError("is not the metadata of a distributed checkpoint")
    shapes: dict[str, tuple[int, ...]] = {}
    known: dict[str, set[Shard]] = {}
    described_so_far = 0
    for key, shards in described.items():
        if not isinstance(key, str) or not isinstance(shards, list) or not all(isinstance(item, Record) for item in shards):
            raise MalformedError("is damaged: it describes something that is not a tensor")
        described_so_far += len(shards)
        # A description takes at least 16 instructions; more of them refer to the same object, to exhaust memory.
        if described_so_far > MAX_STEPS // 16:
            raise MalformedError("describes more shards than it can hold")
        known[str(key)] = {Shard.of(item.fields) for item in shards}
        listed = [item.fields["global_shape"] for item in shards if item.fields.get("global_shape") is not None]
        if not all(map(naturals, listed)):
            raise MalformedError(f"gives tensor {str(key)!r} an invalid shape")
        given = set(listed)
        if len(given) > 1:
            raise MalformedError(f"gives tensor {str(key)!r} different shapes: {sorted(given)}")
        if given:
            shapes[str(key)] = given.pop()
    places: Places = {}
    seen: set[tuple[str, Shard]] = set()
    shaped: dict[tuple[str, Any], set[tuple[int, ...]]] = {}
    for key, shards_of_key in known.items():
        for shard in shards_of_key:
            shaped.setdefault((key, shard.at), set()).add(shard.shape)
    for index, name in stored.items():
        key = index.fields.get("tensor_key") if isinstance(index, Record) else None
        if not isinstance(key, str) or not isinstance(name, str):
            raise MalformedError("is damaged: it locates something that is not a tensor")
        fields = dict(index.fields)
        if fields.get("local_shape") is None:  # older versions have the shape only in the description
            at = fields.get("global_offset")
            same = shaped.get((key, at), set()) if naturals(at) else set()
            fields["local_shape"] = next(iter(same)) if len(same) == 1 else None
        shard = Shard.of(fields)
        if shard not in known.get(key, ()):
            raise MalformedError(f"locates a shard of {str(key)!r} that it doesn't describe")
        if (key, shard) not in seen:  # else it is a replica, which holds the same elements
            seen.add((str(key), shard))
            places.setdefault(str(key), []).append((shard, str(name)))
    missing = sorted(key for key in known if key not in places)
    if missing:
        raise MalformedError(f"locates no shard of {', '.join(missing[:5])}")
    return places, shapes


def _open(file: str) -> dict[str, StoredEntry]:
    """Return the tensors of one rank's file, by name. Raises CheckpointError."""
    if not os.path.isfile(file):
        raise CheckpointError(f"{file}: is named by the metadata, but doesn't exist; the files of all ranks are needed")
    if sniff(file) == "safetensors":
        tensors = safetensors.open_files(file, os.path.dirname(file), [file], None).tensors
        return {name: stored(entry) for name, entry in tensors.items()}
    return {entry.name: entry for entry in read_tensors(file)}


def _tensor(
    key: str, shape: tuple[int, ...] | None, places: list[tuple[Shard, str]], held: Mapping[str, Mapping[str, StoredEntry]]
) -> StoredEntry:
    """Return a tensor, assembled from its shards.

    shape: its shape, if the metadata gives it. places: its shards and their files. held: the tensors of each file.
    Raises MalformedError.
    """
    parts: list[Part] = []
    dtypes = set()
    for shard, name in places:
        if key not in held[name]:
            raise MalformedError(f"should be in {name}, but isn't")
        dtypes.add(held[name][key].dtype)
        parts += shard.parts(held[name][key])
    if len(dtypes) != 1:
        raise MalformedError(f"has different dtypes: {', '.join(sorted(dtype.name for dtype in dtypes))}")
    if shape is None:
        ends = [[at + size for at, size in zip(shard.at, shard.shape, strict=True)] for shard, _ in places]
        if len({len(end) for end in ends}) != 1:
            raise MalformedError("has shards of different dimensions")
        shape = tuple(max(end) for end in zip(*ends, strict=True))
    if any(len(part.at) != len(shape) for part in parts):
        raise MalformedError("has shards with another number of dimensions than its own")
    whole = assemble(key, dtypes.pop(), shape, parts or [Part(held[places[0][1]][key].file, 0, (0,), (0,), (1,))])
    return regroup_ranks(whole, {shard.at for shard, _ in places})


def regroup_ranks(entry: StoredEntry, pieces: Collection[tuple[int, ...]]) -> StoredEntry:
    """Return a fused gate and up projection with all of gate before all of up; and other tensors as they are.

    PaddleFormers stores [gate | up] of each tensor-parallel rank, one rank after the other. (A qkv_proj needs no change:
    each rank holds whole groups of it.)
    pieces: the first indices of the ranks' shards. Raises MalformedError unless they are of equal size along `out`.
    """
    if last_word(entry.name) not in ("up_gate_proj", "gate_up_proj") or len(pieces) == 1:
        return entry
    axis, count = len(entry.shape) - 1, len(pieces)
    width, rest = divmod(entry.shape[axis], 2 * count)
    if rest or {piece[axis] for piece in pieces} != set(range(0, entry.shape[axis], 2 * width)):
        raise MalformedError("is fused, and the ranks' shards of it differ in size, so gate and up can't be told apart")
    halves = repeated(("gate", "up"), [width, width], count)
    return stored(select(entry, axis, [one for half in halves.values() for one in half], entry.name))
