"""Define how one tensor of the output is made, and the pieces in which workers make it.

A random mask is drawn from TensorPlan.seed and masked_as: the sparsifier (such as methods/dare.py) makes a key of them, and
backends/masks.py hashes it with each element's index.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from ..checkpoints.formats.header import Held
from ..checkpoints.scaled import ScaledEntry
from ..checkpoints.tensors import StoredEntry, TensorEntry
from ..conversion.lora.entry import AdaptedEntry
from ..dtypes import FLOAT32, DType, compute_dtype
from ..methods.shared.method import ResolvedMethod
from ..records import record
from .scales import Scales

STORED = StoredEntry, ScaledEntry, AdaptedEntry  # or made of what is stored


@record(frozen=True)
class TensorPlan:
    """How one tensor of the output is made, and where its bytes go.

    sources: one per model; base: the base model's, or None. They have the same shape, and the same dtype unless an output
        dtype is given.
    numbers: the places of `inputs` in Recipe.titles.
    dtype: of the output.
    scales: of its codes, if it is stored as such; dtype is the codes' then.
    resolved: the method, with all parameters resolved for this tensor; values: these, by name, as a recipe calls them.
    weights: what each model counts for, effectively.
    seed, masked_as: what random masks are drawn from: model k's from the key (seed, k, masked_as), see backends/masks.py.
        masked_as is the tensor's own name, or the name of another that has the same bytes in every input: a tied lm_head
        gets the masks of the embedding, and stays tied.
    how: what is done instead of the recipe's method, or after it, in a few words; "": nothing.
    transposed: whether it is a matrix [in, out], as Paddle stores it.
    was: its name in the merged model, if it has another one in the output, of which experts or layers are dropped.
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
    was: str = ""
    how: str = ""
    scales: Scales | None = None

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
        return compute_dtype({self.dtype, *[entry.dtype for entry in self.inputs]})

    @cached_property  # planning asks for them twenty times
    def inputs(self) -> tuple[TensorEntry, ...]:
        """The sources, then the base, if there is one."""
        return self.sources if self.base is None else (*self.sources, self.base)

    @property
    def stages(self) -> list[TensorPlan]:
        """The plans of the recipe's earlier merges whose tensors, or rows of them, it is made of."""
        return [plan for entry in self.inputs if not isinstance(entry, STORED) for plan in _stages(entry)]

    @property
    def nbytes(self) -> int:
        """The bytes of its elements as they are stored, without scales."""
        return self.size * self.dtype.itemsize

    @property
    def rounded(self) -> DType:
        """The dtype to which the merged elements are rounded: float32 where scales are still to be found for them."""
        return self.dtype if self.scales is None else FLOAT32

    @property
    def stored(self) -> list[Held]:
        """What its file holds of it: the tensor, and its scales if it has such."""
        own = Held(self.name, self.dtype, self.shape, self.nbytes)
        return [own] if self.scales is None else [own, self.scales.held]

    @property
    def itemsizes(self) -> int:
        """The bytes of one element in all inputs and in the output."""
        return sum([entry.dtype.itemsize for entry in self.inputs]) + self.dtype.itemsize

    @property
    def traffic(self) -> int:
        """The bytes that are read (once) and written for it."""
        return self.size * self.itemsizes


@record(frozen=True)
class StagedEntry(TensorEntry):
    """A tensor that an earlier merge of the same recipe makes.

    plan: of that merge. title: what people are told that it comes from.
    """

    plan: TensorPlan
    title: str

    @property
    def made_of(self) -> Sequence[TensorEntry]:
        return self.plan.inputs

    def parts_of(self, number: int) -> Sequence[tuple[int, TensorEntry]]:
        return list(zip(self.plan.numbers, self.plan.inputs, strict=True))

    @property
    def bytes_read(self) -> int:
        return sum(entry.bytes_read for entry in self.plan.inputs)

    @property
    def in_blocks(self) -> Sequence[StoredEntry]:
        return ()

    @property
    def remarks(self) -> Sequence[str]:
        return (f"made by {self.title}",)

    @property
    def whole(self) -> bool:
        return self.plan.resolved.measures or any(entry.whole for entry in self.plan.inputs)


def _stages(entry: TensorEntry) -> list[TensorPlan]:
    return [entry.plan] if isinstance(entry, StagedEntry) else [plan for one in entry.made_of for plan in _stages(one)]


class Piece(NamedTuple):
    """The unit of work: elements start..stop of the tensor at this place in Plan.tensors.

    threads: of the worker, that merge it together: more than one for a piece with which one thread would still be busy when
        the other workers have nothing left to do.
    """

    tensor: int
    start: int
    stop: int
    threads: int = 1


def leaves(tensor: TensorPlan) -> Iterator[tuple[int, TensorEntry]]:
    """Yield the entries that are read from checkpoints for a tensor, each with its checkpoint's place in Recipe.sources."""
    for number, entry in zip(tensor.numbers, tensor.inputs, strict=True):
        if isinstance(entry, StoredEntry):  # most are
            yield number, entry
        else:
            yield from _leaves(number, entry)


def _leaves(number: int, entry: TensorEntry) -> Iterator[tuple[int, TensorEntry]]:
    parts = entry.parts_of(number)
    if not parts:
        yield number, entry
    for its, part in parts:
        yield from _leaves(its, part)
