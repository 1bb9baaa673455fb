"""Merge small tensors together, as if they were one: to begin with a tensor takes far longer than to merge a few hundred
elements.

Merged so are tensors of which each element depends on nothing but the same element of every input; and, if they have the
same shape, those that a sparsifier measures first (alike.py).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from ..backends.backend import Backend
from ..backends.budget import MOST_TOGETHER
from ..backends.scratch import Scratch
from ..checkpoints.files import Files
from ..checkpoints.fingerprint import of_elements
from ..checkpoints.tensors import StoredEntry, TensorEntry
from ..conversion.lora.entry import AdaptedEntry
from ..conversion.lora.together import kind_of, read_together
from ..conversion.readers import reader
from ..dtypes import FLOAT32, FLOAT64, DType
from ..plan.tensor_plan import Piece, TensorPlan
from .alike import Alike, SparsifiedApart

Pieces = Sequence[tuple[TensorPlan, Piece]]


def groups(pieces: Iterable[tuple[TensorPlan, Piece]], most: int) -> Iterator[Pieces]:
    """Yield the pieces in order, in groups that can be merged as one.

    most: elements of a group of several, with those of the factors that are read for it. Of the smallest tensors a group has
    fewer: MOST_TOGETHER.
    """
    group, size, last = list[tuple[TensorPlan, Piece]](), 0, None
    for tensor, piece in pieces:
        kind, count = _kind(tensor, piece), max(_elements(tensor, piece), most // MOST_TOGETHER)
        if group and (kind is None or kind != last or size + count > most):
            yield group
            group, size = [], 0
        group.append((tensor, piece))
        size, last = size + count, kind
    if group:
        yield group


def _kind(tensor: TensorPlan, piece: Piece) -> object:
    """Return what is equal for pieces that can be merged as one; None for a piece that can't be merged with others."""
    method = tensor.resolved
    if not tensor.merged or tensor.scales is not None or method.merger.measures:
        return None
    alike, inputs = None, list[object]()
    if method.sparsifier is not None:
        if piece.stop - piece.start != tensor.size or any(entry.dtype.itemsize == 8 for entry in tensor.inputs):
            return None
        alike = tensor.shape, tensor.transposed, tensor.seed
    for entry in tensor.inputs:
        if isinstance(entry, StoredEntry):  # as most are
            inputs.append(entry.dtype)
            continue
        if not isinstance(entry, AdaptedEntry) or entry.whole:
            return None
        inputs.append((entry.dtype, _adapted(entry, tensor, piece)))
    return id(method), tensor.dtype, tensor.compute, tensor.base is None, tensor.numbers, alike, inputs


def _elements(tensor: TensorPlan, piece: Piece) -> int:
    """Return how many elements a piece has, with those of the factors that are read for it: a single row's are many more."""
    factors = [one for entry in tensor.inputs if isinstance(entry, AdaptedEntry) for one in entry.made_of[1:]]
    return piece.stop - piece.start + sum([math.prod(one.shape) for one in factors])


def _adapted(entry: TensorEntry, tensor: TensorPlan, piece: Piece) -> object:
    """Return what is equal for adapted tensors that can be read together; None for what can't."""
    whole = piece.stop - piece.start == tensor.size
    return kind_of(entry) if whole and isinstance(entry, AdaptedEntry) else None


def joined(pieces: Pieces) -> TensorPlan:
    """Return how pieces of a group are merged as one tensor."""
    first, method = pieces[0][0], pieces[0][0].resolved
    if method.sparsifier is not None:
        alike = Alike([tensor.masked_as for tensor, _ in pieces], first.shape, first.transposed, first.seed)
        method = dataclasses.replace(method, sparsifier=SparsifiedApart(method.sparsifier, alike))
    return dataclasses.replace(first, shape=(sum([piece.stop - piece.start for _, piece in pieces]),), resolved=method)


def suits(one: TensorPlan, backend: Backend) -> bool:
    """Return whether a backend can merge tensors joined as `one`. Devices without much memory take smaller blocks; and where
    formulas don't work in place, sparsifying each row takes as long as to merge a tensor by itself."""
    return one.size <= backend.block(len(one.sources)) and (one.resolved.sparsifier is None or backend.in_place)


class JoinedSource:
    """Gives the elements of several tensors' inputs, one tensor behind the other; they must be read at once.

    fingerprints: of each input, of what was read for each tensor.
    """

    def __init__(self, pieces: Pieces, files: Files, scratch: Scratch):
        self._pieces, self._files, self._scratch = pieces, files, scratch
        first, _ = pieces[0]
        wide = FLOAT32 if first.compute == "float32" else FLOAT64
        self.dtypes: Sequence[DType] = [wide if entry.computed else entry.dtype for entry in first.inputs]
        self.fingerprints: list[list[str]] = [[] for _ in self.dtypes]

    def read(self, number: int, start: int, count: int) -> np.ndarray:
        """Return what Source.read does, of all tensors. Raises WorkError."""
        raw = self._scratch.array(f"raw {number}", count, self.dtypes[number].raw)
        entries = [tensor.inputs[number] for tensor, _ in self._pieces]
        if _adapted(entries[0], *self._pieces[0]) is not None:
            read_together([entry for entry in entries if isinstance(entry, AdaptedEntry)], self._files, raw)
        elif isinstance(entries[0], StoredEntry) and sum([math.prod(entry.shape) for entry in entries]) == count:
            self._files.read_all(entries, raw)
        else:
            for entry, (tensor, piece), part in zip(entries, self._pieces, cut(self._pieces, raw), strict=True):
                reader(entry, tensor.compute, self._files).read(piece.start, part)
        parts = zip(self._pieces, cut(self._pieces, raw), strict=True)
        self.fingerprints[number] = [of_elements(part, piece.start) for (_, piece), part in parts]
        return raw

    def sample(self, number: int, clusters: int, step: int, width: int) -> np.ndarray:
        raise RuntimeError("tensors that are merged together are read whole")


def cut(pieces: Pieces, raw: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the part of an array that each piece has, of an array of all their elements."""
    at = 0
    for _, piece in pieces:
        yield raw[at : (at := at + piece.stop - piece.start)]
