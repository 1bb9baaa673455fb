"""Plan: what will be done, decided from headers alone. Every tensor of every input is accounted for, every byte of the
output has its place, and everything that is wrong is found at once, before a weight is read.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from .blocks import worker_memory
from .dtypes import DType
from .engine import NUMPY, Engine
from .errors import CheckpointError
from .files import PANEL
from .layout import FORMATS, normalise
from .readers import Checkpoint, TensorEntry, open_checkpoint
from .recipe import Recipe

PIECE_BYTES = 64 << 20  # of output; larger tensors are shared out among workers where the method allows it


@dataclass(frozen=True)
class TensorPlan:
    """One tensor of the output.

    sources: one per model; base: the base model's, or None. They have the same shape, and the same dtype unless an output
    dtype is given. merged: False for integers and booleans, which must be equal everywhere and are copied.
    dtype: of the output. shard, offset: where its first byte goes.
    """

    name: str
    shape: tuple[int, ...]
    sources: tuple[TensorEntry, ...]
    base: TensorEntry | None
    merged: bool
    dtype: DType
    shard: int
    offset: int

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def inputs(self) -> tuple[TensorEntry, ...]:
        return self.sources if self.base is None else (*self.sources, self.base)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize


@dataclass(frozen=True)
class Shard:
    """One output file: its final name, the bytes before the first tensor, and its size."""

    name: str
    header: bytes
    nbytes: int


@dataclass(frozen=True)
class Piece:
    """What a worker takes at a time: elements start..stop of one tensor."""

    tensor: int
    start: int
    stop: int


@dataclass(frozen=True)
class Plan:
    """tensors in output order; pieces largest first; warnings: sentences for the user before work starts."""

    recipe: Recipe
    inputs: tuple[Checkpoint, ...]  # as Recipe.sources
    tensors: tuple[TensorPlan, ...]
    shards: tuple[Shard, ...]
    pieces: tuple[Piece, ...]
    n_process: int
    engine: Engine
    layout: str | None  # of the output, if it is known
    turned: tuple[str, ...]  # a sentence on each input that is read in another layout than its own
    warnings: tuple[str, ...]

    @property
    def prefix(self) -> str:
        """What the output's files are called after."""
        return self.recipe.prefix

    @property
    def donor(self) -> Checkpoint:
        """Where config and tokenizer come from: the base model, else the first model."""
        return self.inputs[-1] if self.recipe.base is not None else self.inputs[0]

    @property
    def bytes_in(self) -> int:
        return sum(entry.nbytes for tensor in self.tensors for entry in tensor.inputs)

    @property
    def bytes_out(self) -> int:
        return sum(shard.nbytes for shard in self.shards)

    @property
    def memory(self) -> int:
        """An upper estimate of what all processes together will have resident, in bytes."""
        models = len(self.recipe.models)
        alone = self.n_process == 1 and self.engine.tensor_type == "np"
        headers = len(self.tensors) * (len(self.inputs) + 1) * 1024  # what this process knows of each tensor
        panels = PANEL * max((sum(entry.scattered for entry in tensor.inputs) for tensor in self.tensors), default=0)
        worker = worker_memory(models, self.recipe, self.engine, alone) + panels
        return worker * self.n_process + (0 if alone else 60 << 20) + headers

    def share(self, rank: int, ranks: int) -> tuple[Piece, ...]:
        """The pieces that one of several ranks merges: largest first, each to the rank with the least to do so far."""
        loads = [0] * ranks
        mine = []
        for piece in self.pieces:
            least = loads.index(min(loads))
            loads[least] += self.traffic(piece)
            if least == rank:
                mine.append(piece)
        return tuple(mine)

    def traffic(self, piece: Piece) -> int:
        """Bytes read for the first time, and written."""
        tensor = self.tensors[piece.tensor]
        itemsizes = [entry.dtype.itemsize for entry in tensor.inputs] + [tensor.dtype.itemsize]
        return (piece.stop - piece.start) * sum(itemsizes)

    def index(self) -> bytes | None:
        """The content of the index file; None if the output is one file."""
        if len(self.shards) == 1:
            return None
        weight_map = {tensor.name: self.shards[tensor.shard].name for tensor in self.tensors}
        total = sum(tensor.nbytes for tensor in self.tensors)
        content = {"metadata": {"total_size": total}, "weight_map": weight_map}
        return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def open_inputs(paths: Sequence[str], prefix: str) -> tuple[Checkpoint, ...]:
    """The checkpoints' headers. Raises CheckpointError listing what is wrong with any of them."""
    inputs: list[Checkpoint] = []
    problems: list[str] = []
    for path in paths:
        try:
            inputs.append(open_checkpoint(path, prefix))
        except CheckpointError as error:
            problems += error.problems
    if problems:
        raise CheckpointError(problems)
    return tuple(inputs)


def make_plan(
    recipe: Recipe, n_process: int = 1, shard_bytes: int = 5_000_000_000, engine: Engine = NUMPY, ranks: int = 1
) -> Plan:
    """Read the headers of all inputs and decide. ranks: how many processes, of n_process workers each, share the plan.

    Raises CheckpointError listing everything that doesn't fit.
    """
    opened = open_inputs(recipe.sources, recipe.prefix)
    given = recipe.layouts or (None,) * len(opened)
    inputs, layout, turned = normalise(opened, given, recipe.output_layout, recipe.strict_layout, recipe.prefix)
    if layout is not None and (turned or recipe.output_layout):
        inputs = tuple(dataclasses.replace(checkpoint, format=FORMATS[layout]) for checkpoint in inputs)
    problems = differences(inputs, recipe.out_dtype)
    if problems:
        raise CheckpointError(problems)

    donor = inputs[-1] if recipe.base is not None else inputs[0]
    tensors, shards = _lay_out(recipe, inputs, donor, shard_bytes)
    pieces = _cut(tensors, recipe, n_process * ranks)
    return Plan(
        recipe,
        inputs,
        tensors,
        shards,
        pieces,
        max(1, min(n_process, len(pieces))),
        engine,
        layout,
        tuple(turned),
        tuple(_warnings(inputs, donor)),
    )


def differences(inputs: Sequence[Checkpoint], out_dtype: DType | None) -> list[str]:
    """Every way in which the inputs' tensors don't match: names, shapes, dtypes (of numbers, if no out_dtype is given)."""
    everywhere = {name: None for checkpoint in inputs for name in checkpoint.tensors}
    if not everywhere:
        return [f"{inputs[0].path}: holds no tensors"]
    missing: list[str] = []
    shapes: list[str] = []
    dtypes: list[str] = []
    for name in everywhere:
        without = [checkpoint.path for checkpoint in inputs if name not in checkpoint.tensors]
        if without:
            holders = [checkpoint.path for checkpoint in inputs if name in checkpoint.tensors]
            missing.append(f"tensor {name!r} is missing in {', '.join(without)} (it is in {', '.join(holders)})")
            continue
        entries = [(checkpoint.path, checkpoint.tensors[name]) for checkpoint in inputs]
        if len({entry.shape for _, entry in entries}) > 1:
            shown = ", ".join(f"{list(entry.shape)} in {path}" for path, entry in entries)
            shapes.append(f"tensor {name!r} has different shapes: {shown}")
        all_float = all(entry.dtype.is_float for _, entry in entries)
        if len({entry.dtype for _, entry in entries}) > 1 and not (all_float and out_dtype):
            shown = ", ".join(f"{entry.dtype.name} in {path}" for path, entry in entries)
            remedy = "; --out_dtype merges them and says how to store the result" if all_float else ""
            dtypes.append(f"tensor {name!r} has different dtypes: {shown}{remedy}")
    problems = []
    for found in (missing, shapes, dtypes):
        problems += found
    return problems


def _lay_out(
    recipe: Recipe, inputs: Sequence[Checkpoint], donor: Checkpoint, shard_bytes: int
) -> tuple[tuple[TensorPlan, ...], tuple[Shard, ...]]:
    """Which tensor goes where: in the donor's order, shards filled up to shard_bytes, wide dtypes first within a shard."""
    models = len(recipe.models)
    groups: list[list[tuple[str, DType, int]]] = [[]]
    filled = 0
    for name, entry in donor.tensors.items():
        dtype = recipe.out_dtype if recipe.out_dtype and entry.dtype.is_float else entry.dtype
        nbytes = math.prod(entry.shape) * dtype.itemsize
        if groups[-1] and filled + nbytes > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append((name, dtype, nbytes))
        filled += nbytes

    tensors: list[TensorPlan] = []
    shards: list[Shard] = []
    for number, group in enumerate(groups):
        single = len(groups) == 1
        file = f"{recipe.prefix}.safetensors"
        file = file if single else f"{recipe.prefix}-{number + 1:05d}-of-{len(groups):05d}.safetensors"
        group.sort(key=lambda item: -item[1].itemsize)  # so that every tensor is aligned to its own width
        header: dict[str, object] = {"__metadata__": {"format": donor.format}} if donor.format is not None else {}
        end = 0
        for name, dtype, nbytes in group:
            shape = list(donor.tensors[name].shape)
            header[name] = {"dtype": dtype.tag, "shape": shape, "data_offsets": [end, end + nbytes]}
            end += nbytes
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        head = struct.pack("<Q", len(text)) + text
        offset = len(head)
        for name, dtype, nbytes in group:
            entries = [checkpoint.tensors[name] for checkpoint in inputs]
            tensors.append(
                TensorPlan(
                    name=name,
                    shape=entries[0].shape,
                    sources=tuple(entries[:models]),
                    base=entries[-1] if recipe.base is not None else None,
                    merged=entries[0].dtype.is_float,
                    dtype=dtype,
                    shard=number,
                    offset=offset,
                )
            )
            offset += nbytes
        shards.append(Shard(file, head, offset))
    return tuple(tensors), tuple(shards)


def _cut(tensors: Sequence[TensorPlan], recipe: Recipe, workers: int) -> tuple[Piece, ...]:
    """The pieces, largest first so that workers finish together. A tensor that must be measured stays whole."""
    pieces = []
    for number, tensor in enumerate(tensors):
        step = max(1, PIECE_BYTES // tensor.dtype.itemsize)
        if workers == 1 or (tensor.merged and recipe.measures):
            step = max(1, tensor.size)
        for start in range(0, tensor.size, step):
            pieces.append(Piece(number, start, min(start + step, tensor.size)))
    return tuple(sorted(pieces, key=lambda piece: piece.start - piece.stop))


def _warnings(inputs: Sequence[Checkpoint], donor: Checkpoint) -> list[str]:
    found = []
    formats = {checkpoint.format for checkpoint in inputs}
    if len(formats) > 1:
        shown = ", ".join(f"{checkpoint.format} in {checkpoint.path}" for checkpoint in inputs)
        found.append(
            f"the inputs' metadata formats differ ({shown}): if one stores Linear weights transposed, square ones"
            " merge wrongly"
        )
    real = [os.path.realpath(checkpoint.path) for checkpoint in inputs]
    for path in sorted({checkpoint.path for checkpoint in inputs if real.count(os.path.realpath(checkpoint.path)) > 1}):
        found.append(f"{path} is given more than once")
    if not os.path.isfile(os.path.join(donor.folder, "config.json")):
        found.append(f"{donor.folder} has no config.json, so the output won't have one either; loaders need it")
    return found
