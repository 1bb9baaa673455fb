"""Find tensors that are stored under several names, such as tied embeddings, by their values.

T5 stores its embedding as shared, encoder.embed_tokens, decoder.embed_tokens and lm_head; torch's files keep all copies. A
copy must be merged as the original is: with the same random masks, or the two drift apart.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import numpy as np
import xxhash

from ..checkpoints.files import Files
from ..checkpoints.scaled import ScaledEntry
from ..checkpoints.tensors import StoredEntry, TensorEntry
from ..conversion.lora.entry import AdaptedEntry
from ..conversion.vocabulary.entry import AlignedEntry
from .assemble import AssembledTensor
from .tensor_plan import StagedEntry

PROBE = 16  # elements of a tensor that are read to see whether it may equal another
STEP = 1 << 20  # elements that are read at a time


Read = Callable[[TensorEntry, int, np.ndarray], None]  # fills an array with the elements from an index on, as Files.read


def originals(
    made: Sequence[AssembledTensor], read: Read | None = None, known: dict[Any, Hashable] | None = None
) -> dict[str, str]:
    """Return, for each tensor, the first one that is the same as it in every input: its own name, if there is none before.

    Tensors are the same if they are made of the same stored bytes, in the same way. Where random masks are drawn, they also
    are if their values are equal in every input: then a few elements of each tensor are read in one input, and everything of
    those that may be equal.

    read: gives the stored elements; None: reads them from files. known: keeps what was read for calls to come, if the
    files don't change between them. Raises WorkError if they can't be read.
    """
    found = {one.name: one.name for one in made}
    for group in _groups(made, lambda one: _read_first(one.entries[0])):  # few: all others differ there already
        first: dict[Hashable, str] = {}
        found |= {one.name: first.setdefault(one.made_of, one.name) for one in group}
    different = [one for one in made if found[one.name] == one.name and _draws(one)]
    files = Files()
    read = read or files.read
    known = {} if known is None else known

    def key(entries: Sequence[TensorEntry], count: int | None) -> Hashable:
        place = tuple(entry.nameless for entry in entries), count
        if place not in known:
            known[place] = _key(entries, read, count)
        return known[place]

    try:
        for group in _groups(different, lambda one: key(one.entries[-1:], PROBE)):
            for equal in _groups(group, lambda one: key(one.entries, None)):
                found |= {one.name: equal[0].name for one in equal}
    finally:
        files.close()
    return {name: found[like] for name, like in found.items()}


def masked_as(
    made: Sequence[AssembledTensor], read: Read | None = None, known: dict[Any, Hashable] | None = None
) -> dict[str, str]:
    """Return, for each tensor, the name that its random masks are drawn from: its own in the merged model, or that of the
    first tensor that is the same as it. The arguments are as those of originals."""
    was = {one.name: one.was or one.name for one in made}
    return {name: was[like] for name, like in originals(made, read, known).items()}


def _read_first(entry: TensorEntry) -> Hashable:
    """Return what is equal for tensors that are the same, in less time than comparing what adapters change takes."""
    return entry.stored.nameless if isinstance(entry, AdaptedEntry) else entry.nameless


def _draws(one: AssembledTensor) -> bool:
    """Return whether masks are drawn for a tensor that has elements."""
    sparsifier = one.resolved.sparsifier
    if sparsifier is None or not sparsifier.random:
        return False
    first = one.entries[0]
    return first.nbytes > 0 and first.dtype.is_float


def _groups(made: Iterable[AssembledTensor], key: Callable[[AssembledTensor], Hashable]) -> list[list[AssembledTensor]]:
    """Return those that have the same key as others, together."""
    found: dict[Hashable, list[AssembledTensor]] = {}
    for one in made:
        found.setdefault(key(one), []).append(one)
    return [group for group in found.values() if len(group) > 1]


def _key(entries: Sequence[TensorEntry], read: Read, count: int | None) -> Hashable:
    """Return what is equal for tensors whose first `count` elements (None: all) are the same in each of these inputs."""
    return tuple((entry.shape, entry.dtype.name, _digest(entry, read, count)) for entry in entries)


def _digest(entry: TensorEntry, read: Read, count: int | None) -> Hashable:
    """Return what is equal for tensors with equal values: a checksum of what is stored, and how tensors are made of it."""
    match entry:
        case StagedEntry():  # of one stage, tensors with the same masks are made of the same values
            return entry.title, entry.plan.masked_as, entry.plan.resolved
        case AlignedEntry():
            picks = tuple((pick.number, pick.runs, _digest(pick.entry, read, count)) for pick in entry.picks)
            return entry.axis, entry.means, picks
        case ScaledEntry():
            digests = tuple(_digest(one, read, count) for one in entry.made_of)
            return entry.zero, *(grid.place for grid in entry.grids), digests
        case StoredEntry():
            return _checksum(entry, read, count)
    return entry.nameless  # adapters change one of several copies only, or are refused


def _checksum(entry: StoredEntry, read: Read, count: int | None) -> bytes:
    found: Any = xxhash.xxh3_128()
    size = entry.nbytes // entry.dtype.itemsize
    stop = size if count is None else min(count, size)
    raw = np.empty(min(STEP, stop), entry.dtype.raw)
    for start in range(0, stop, STEP):
        block = raw[: min(STEP, stop - start)]
        read(entry, start, block)
        found.update(block.view(np.uint8).data)
    return bytes(found.digest())
