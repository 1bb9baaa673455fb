"""Plan: what will be done, decided from headers alone. Every tensor of every input is accounted for, every byte of the
output has its place, and everything that is wrong is found at once, before a weight is read.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence, Set
from dataclasses import dataclass

from .assemble import Made, assemble
from .detect import LAYOUTS
from .donor import Donor, find_donor
from .dtypes import DType, compute_dtype
from .engine import NUMPY, Engine
from .errors import CheckpointError
from .frames import Held
from .frames.formats import FORMATS, shard_name
from .inputs import differences, open_inputs, warnings
from .layout import METADATA, normalise, turned_in
from .lora.fold import adapt
from .readers import Checkpoint, TensorEntry
from .readers.adapters import Adapter
from .recipe import Mix, Recipe

PIECE_BYTES = 64 << 20  # of output; larger tensors are shared out among workers where the method allows it


@dataclass(frozen=True)
class TensorPlan:
    """One tensor of the output.

    sources: one per model; base: the base model's, or None. They have the same shape, and the same dtype unless an output
    dtype is given. merged: False for integers and booleans, which must be equal everywhere and are copied.
    mix: how it is merged. numbers: the places of its inputs in Recipe.sources.
    dtype: of the output. shard, offset: where its first byte goes. masked_as: whose random masks it gets; a tied lm_head,
    the same bytes in every input, must stay the embedding. turned: whether it is a matrix [in, out], the reverse of torch's.
    """

    name: str
    shape: tuple[int, ...]
    sources: tuple[TensorEntry, ...]
    base: TensorEntry | None
    merged: bool
    dtype: DType
    shard: int
    offset: int
    mix: Mix
    numbers: tuple[int, ...]
    masked_as: str = ""
    turned: bool = False

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def compute(self) -> str:
        """What it is merged in: "float32" or "float64"."""
        return compute_dtype([*(entry.dtype for entry in self.inputs), self.dtype])

    @property
    def inputs(self) -> tuple[TensorEntry, ...]:
        return self.sources if self.base is None else (*self.sources, self.base)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize


@dataclass(frozen=True)
class Shard:
    """One output file: its final name, the bytes around the tensors, each with its offset, and its size."""

    name: str
    frame: tuple[tuple[int, bytes], ...]
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
    donor: Donor
    tensors: tuple[TensorPlan, ...]
    shards: tuple[Shard, ...]
    pieces: tuple[Piece, ...]
    n_process: int
    ranks: int  # how many processes, of n_process workers each, share the pieces
    engine: Engine
    layout: str | None  # of the output, if it is known
    turned: tuple[str, ...]  # a sentence on each input that is read in another layout than its own
    folded: tuple[str, ...]  # a sentence on each adapter
    warnings: tuple[str, ...]
    opened: tuple[tuple[Checkpoint, Sequence[Adapter]], ...]  # the inputs as they are stored

    @property
    def prefix(self) -> str:
        """What the output's files are called after."""
        return self.recipe.prefix

    @property
    def save_format(self) -> str:
        return self.recipe.save_format

    @property
    def measures(self) -> bool:
        """Whether some tensor is read twice: once to measure it, once to merge it."""
        return any(tensor.merged and tensor.mix.measures for tensor in self.tensors)

    @property
    def bytes_in(self) -> int:
        return sum(entry.nbytes for tensor in self.tensors for entry in tensor.inputs)

    @property
    def bytes_out(self) -> int:
        return sum(shard.nbytes for shard in self.shards)

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


def make_plan(
    recipe: Recipe, n_process: int = 1, shard_bytes: int = 5_000_000_000, engine: Engine = NUMPY, ranks: int = 1
) -> Plan:
    """Read the headers of all inputs and decide. ranks: how many processes, of n_process workers each, share the plan.

    Raises CheckpointError listing everything that doesn't fit.
    """
    opened, adapters = zip(*open_inputs(recipe.sources, recipe.prefix), strict=True)
    donor = find_donor(opened, recipe.base is not None, recipe.config_from)
    inputs, layout, turned = normalise(
        opened, recipe.layouts, recipe.output_layout, recipe.strict_layout, recipe.prefix, donor.config
    )
    inputs, folded, worries = adapt(inputs, adapters, recipe.sources, layout, donor.config)
    if layout is not None:
        inputs = tuple(dataclasses.replace(checkpoint, format=METADATA[layout]) for checkpoint in inputs)
    problems = differences(inputs, recipe.out_dtype) if recipe.slices[0].layers is None else []
    if recipe.save_format == "pdparams":
        problems += _not_paddles(inputs, layout)
    if problems:
        raise CheckpointError(problems)

    pattern = inputs[-1] if recipe.base is not None else inputs[0]
    made, idle = assemble(recipe, inputs)
    sideways = turned_in({one.name: one.entries[-1] for one in made}, layout)
    tensors, shards = _lay_out(made, recipe, pattern.format, shard_bytes, sideways)
    pieces = _cut(tensors, n_process * ranks)
    return Plan(
        recipe,
        inputs,
        donor,
        tensors,
        shards,
        pieces,
        max(1, min(n_process, len(pieces))),
        ranks,
        engine,
        layout,
        tuple(turned),
        tuple(folded),
        (*idle, *worries, *warnings(inputs, donor)),
        tuple(zip(opened, adapters, strict=True)),
    )


def _not_paddles(inputs: Sequence[Checkpoint], layout: str | None) -> list[str]:
    """Why the merged model is none for Paddle's files, which hold matrices [in, out]."""
    if layout == "hf":
        return [
            "--save_format pdparams is for Paddle, and the merged model would be in Hugging Face's layout: pass"
            " --output_layout paddlenlp or paddleformers too"
        ]
    torch = [checkpoint for checkpoint in inputs if checkpoint.kind == "bin" or checkpoint.format == "pt"]
    if layout is not None or not torch:
        return []
    matrices = [name for name, entry in torch[0].tensors.items() if len(entry.shape) == 2 and min(entry.shape) > 1]
    return [
        f"--save_format pdparams is for Paddle, and {torch[0].path} is torch's, which may store {name!r} turned; say how"
        f" with --layout, one of {', '.join(LAYOUTS)} for each model and then the base, and pass --output_layout"
        " paddlenlp or paddleformers too"
        for name in matrices[:1]
    ]


def _lay_out(
    made: Sequence[Made], recipe: Recipe, format: str | None, shard_bytes: int, sideways: Set[str]
) -> tuple[tuple[TensorPlan, ...], tuple[Shard, ...]]:
    """Which tensor goes where: in the given order, shards filled up to shard_bytes, wide dtypes first within a shard.
    sideways: names of matrices [in, out].

    Raises CheckpointError listing the tensors that the output's format can't hold.
    """
    groups: list[list[tuple[Held, Made]]] = [[]]
    filled = 0
    for one in made:
        entry = one.base or one.sources[0]
        dtype = recipe.out_dtype if recipe.out_dtype and entry.dtype.is_float else entry.dtype
        nbytes = math.prod(entry.shape) * dtype.itemsize
        if groups[-1] and filled + nbytes > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append((Held(one.name, dtype, entry.shape, nbytes), one))
        filled += nbytes

    tensors: list[TensorPlan] = []
    shards: list[Shard] = []
    problems: list[str] = []
    first: dict[tuple[TensorEntry, ...], str] = {}  # what a tensor is made of in every input -> its name
    form = FORMATS[recipe.save_format]
    for number, group in enumerate(groups):
        group.sort(key=lambda pair: -pair[0].dtype.itemsize)  # so that every tensor is aligned to its own width
        problems += form.problems([held for held, _ in group])
        frame = form.frame([held for held, _ in group], format)
        for (held, one), offset in zip(group, frame.offsets, strict=True):
            made_of = tuple(dataclasses.replace(entry, name="") for entry in one.entries)
            tensors.append(
                TensorPlan(
                    name=held.name,
                    shape=held.shape,
                    sources=one.sources,
                    base=one.base,
                    merged=one.sources[0].dtype.is_float,
                    dtype=held.dtype,
                    shard=number,
                    offset=offset,
                    mix=one.mix,
                    numbers=one.numbers,
                    masked_as=first.setdefault(made_of, held.name),
                    turned=held.name in sideways,
                )
            )
        name = shard_name(recipe.save_format, recipe.prefix, number, len(groups))
        shards.append(Shard(name, frame.pieces, frame.nbytes))
    if problems:
        raise CheckpointError(problems)
    return tuple(tensors), tuple(shards)


def _cut(tensors: Sequence[TensorPlan], workers: int) -> tuple[Piece, ...]:
    """The pieces, largest first so that workers finish together. A tensor that must be measured stays whole."""
    pieces = []
    for number, tensor in enumerate(tensors):
        step = max(1, PIECE_BYTES // tensor.dtype.itemsize)
        if workers == 1 or (tensor.merged and tensor.mix.measures) or any(entry.whole for entry in tensor.inputs):
            step = max(1, tensor.size)
        for start in range(0, tensor.size, step):
            pieces.append(Piece(number, start, min(start + step, tensor.size)))
    return tuple(sorted(pieces, key=lambda piece: piece.start - piece.stop))
