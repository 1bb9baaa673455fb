"""Define the plan of a merge: for every tensor of the output its inputs, its method and the place of its bytes.

Before: planner.py makes a Plan from a recipe and the headers of its inputs. After: run/merge.py hands its pieces to workers,
and run/pipeline.py merges a tensor as its TensorPlan says. A random mask is drawn from TensorPlan.seed and masked_as: the
sparsifier (such as methods/dare.py) makes a key of them, and backends/masks.py hashes it with each element's index.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..backends.engine import Engine
from ..checkpoints.adapters import Adapter
from ..checkpoints.fingerprint import BLOCK
from ..checkpoints.tensors import Checkpoint, Origin, TensorEntry
from ..conversion.vocabulary.entry import AlignedEntry
from ..conversion.vocabulary.vocabularies import Tokens
from ..dtypes import DType, compute_dtype
from ..methods.shared.method import ResolvedMethod
from ..recipe.parameters import is_uniform
from ..recipe.recipe import Recipe
from .added_tokens import AddedTokens
from .chat import ChatTemplate
from .config_source import ConfigSource

WORKER_BYTES = 1 << 27  # that a worker must have to read and write for its start to pay
PIECE_BYTES = 64 << 20  # of output; larger tensors are shared out among workers where the method allows it


@dataclass(frozen=True)
class TensorPlan:
    """How one tensor of the output is made, and where its bytes go.

    sources: one per model; base: the base model's, or None. They have the same shape, and the same dtype unless an output
        dtype is given.
    numbers: the places of `inputs` in Recipe.titles.
    dtype: of the output.
    resolved: the method, with all parameters resolved for this tensor; values: these, by name, as a recipe calls them.
    weights: what each model counts for, effectively.
    seed, masked_as: what random masks are drawn from: model k's from the key (seed, k, masked_as), see backends/masks.py.
        masked_as is the tensor's own name, or the name of another that has the same bytes in every input: a tied lm_head
        gets the masks of the embedding, and stays tied.
    transposed: whether it is a matrix [in, out], as Paddle stores it.
    shard, offset: the output file, by its place in Plan.shards, and where in it the tensor's first byte goes. (Of a tensor
        that is not written to a file, they mean nothing.)
    """

    name: str
    shape: tuple[int, ...]
    sources: tuple[TensorEntry, ...]
    base: TensorEntry | None
    numbers: tuple[int, ...]
    dtype: DType
    resolved: ResolvedMethod
    weights: tuple[float, ...]
    seed: int
    masked_as: str
    transposed: bool = False
    values: tuple[tuple[str, Any], ...] = ()
    shard: int = 0
    offset: int = 0

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def merged(self) -> bool:
        """Whether it is merged: integers and booleans are not. They must be equal everywhere, and are copied."""
        return self.sources[0].dtype.is_float

    @cached_property
    def compute(self) -> str:
        """The dtype that it is merged in: "float32" or "float64"."""
        return compute_dtype([*(entry.dtype for entry in self.inputs), self.dtype])

    @property
    def inputs(self) -> tuple[TensorEntry, ...]:
        """The sources, then the base, if there is one."""
        return self.sources if self.base is None else (*self.sources, self.base)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize


@dataclass(frozen=True)
class StagedEntry(TensorEntry):
    """A tensor that an earlier merge of the same recipe makes.

    plan: of that merge. title: what people are told that it comes from.
    """

    plan: TensorPlan
    title: str

    @property
    def made_of(self) -> Sequence[TensorEntry]:
        return self.plan.inputs

    @property
    def whole(self) -> bool:
        return self.plan.resolved.measures or any(entry.whole for entry in self.plan.inputs)


@dataclass(frozen=True)
class Shard:
    """An output file: its final name, the bytes around the tensors, each with its offset, and its size in bytes."""

    name: str
    header: tuple[tuple[int, bytes], ...]
    nbytes: int


@dataclass(frozen=True)
class Piece:
    """The unit of work: elements start..stop of the tensor at this place in Plan.tensors."""

    tensor: int
    start: int
    stop: int


@dataclass(frozen=True)
class Plan:
    """Everything that is decided before weights are read.

    tensors: in the order of the output. pieces: the largest first. warnings: sentences for the user before the merge begins.
    """

    recipe: Recipe
    inputs: tuple[Checkpoint, ...]  # as Recipe.sources
    config_source: ConfigSource
    tensors: tuple[TensorPlan, ...]
    shards: tuple[Shard, ...]
    pieces: tuple[Piece, ...]
    n_process: int
    ranks: int  # how many processes, of n_process workers each, share the pieces
    engine: Engine
    layout: str | None  # of the output, if it is known
    layout_notes: tuple[str, ...]  # a sentence on each input that is read in another layout than its own
    left_out: Mapping[Origin, str]  # why stored tensors are not read, by their origins: those that no loader needs
    tied: bool | None  # whether lm_head is tied to the embedding, if that is otherwise than in some input; else None
    folded: tuple[str, ...]  # a sentence on each adapter
    warnings: tuple[str, ...]
    tokens: Tokens | None  # of the output, if vocabularies are aligned
    added: AddedTokens | None  # that an adapter brings to the output, if vocabularies aren't aligned
    opened: tuple[tuple[Checkpoint, Sequence[Adapter]], ...]  # the inputs as they are stored
    chat_template: ChatTemplate | None  # None: the tokenizer's own
    tokens_known: tuple[int, ...]  # how many tokens each vocabulary has that was read, or made

    @property
    def resolved(self) -> ResolvedMethod | None:
        """How all tensors are merged; None if the recipe has parameters that vary by layer, tensor or slice."""
        return self.tensors[0].resolved if is_uniform(self.recipe) else None

    @property
    def weights(self) -> list[tuple[int, float | None]]:
        """What is merged, by its place in Recipe.titles, and how much it counts; None where that varies."""
        inputs = [one.number for part in self.recipe.slices for one in part.inputs]
        if self.resolved is None:
            return [(number, None) for number in dict.fromkeys(inputs)]
        return list(zip(inputs, self.tensors[0].weights, strict=True))

    @property
    def prefix(self) -> str:
        """The beginning of the names of the output's files: "model" or "master_weights"."""
        return self.recipe.prefix

    @property
    def save_format(self) -> str:
        return self.recipe.save_format

    @property
    def measures(self) -> bool:
        """Whether some tensor is read twice: once to measure it, and once to merge it."""
        return any(tensor.merged and tensor.resolved.measures for tensor in self.tensors)

    @property
    def bytes_in(self) -> int:
        return sum(entry.nbytes for tensor in self.tensors for entry in tensor.inputs)

    @property
    def bytes_out(self) -> int:
        return sum(shard.nbytes for shard in self.shards)

    def share(self, rank: int, ranks: int) -> tuple[Piece, ...]:
        """Return the pieces that one of several ranks merges: each piece goes to the rank with the least to do so far."""
        loads = [0] * ranks
        mine = []
        for piece in self.pieces:
            least = loads.index(min(loads))
            loads[least] += self.traffic(piece)
            if least == rank:
                mine.append(piece)
        return tuple(mine)

    def traffic(self, piece: Piece) -> int:
        """Return the bytes that a piece reads (once) and writes."""
        tensor = self.tensors[piece.tensor]
        itemsizes = [entry.dtype.itemsize for entry in tensor.inputs] + [tensor.dtype.itemsize]
        return (piece.stop - piece.start) * sum(itemsizes)

    def index(self) -> bytes | None:
        """Return the content of the index file; None if the output is one file."""
        if len(self.shards) == 1:
            return None
        weight_map = {tensor.name: self.shards[tensor.shard].name for tensor in self.tensors}
        total = sum(tensor.nbytes for tensor in self.tensors)
        content = {"metadata": {"total_size": total}, "weight_map": weight_map}
        return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def leaves(tensor: TensorPlan) -> Iterator[tuple[int, TensorEntry]]:
    """Yield the entries that are read from checkpoints for a tensor, each with its checkpoint's place in Recipe.sources."""
    for number, entry in zip(tensor.numbers, tensor.inputs, strict=True):
        yield from _leaves(number, entry)


def _leaves(number: int, entry: TensorEntry) -> Iterator[tuple[int, TensorEntry]]:
    if isinstance(entry, StagedEntry):
        yield from leaves(entry.plan)
    elif isinstance(entry, AlignedEntry):
        for pick in entry.picks:
            yield from _leaves(pick.number, pick.entry)
    else:
        yield number, entry


def suited(tensors: Sequence[TensorPlan], most: int, ranks: int = 1) -> int:
    """Return how many workers a merge should have. most: that can work at the same time, of all ranks together."""
    nbytes = sum(tensor.nbytes + sum(entry.nbytes for entry in tensor.inputs) for tensor in tensors)
    return max(1, min(most, nbytes // WORKER_BYTES) // ranks)


def cut(tensors: Sequence[TensorPlan], workers: int) -> tuple[Piece, ...]:
    """Cut tensors into pieces of at most PIECE_BYTES, largest first, so that workers finish together.

    A tensor that must be measured before it is merged stays in one piece.
    """
    pieces = []
    for number, tensor in enumerate(tensors):
        step = max(1, PIECE_BYTES // tensor.dtype.itemsize // BLOCK) * BLOCK
        if workers == 1 or (tensor.merged and tensor.resolved.measures) or any(entry.whole for entry in tensor.inputs):
            step = max(1, tensor.size)
        for start in range(0, tensor.size, step):
            pieces.append(Piece(number, start, min(start + step, tensor.size)))
    return tuple(sorted(pieces, key=lambda piece: piece.start - piece.stop))
