"""Describe tensors of quantised checkpoints: codes that become numbers when they are multiplied by scales."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import replace
from functools import cached_property

from ..records import record
from .tensors import StoredEntry, TensorEntry, stored

STEP = 1 << 16  # elements that are read and scaled at a time; every element comes out the same for any other number


@record(frozen=True)
class Grid:
    """Locate the scales of a box of a tensor: one for each block of its elements.

    at, shape: of the box in the tensor, one number per dimension.
    scales: a number for each block, with as many dimensions as the tensor.
    zeros: what is subtracted from the codes of each block, of the same shape; None: nothing.
    block: the size of a block along each dimension.
    phase: how many elements of the first block, along each dimension, lie before the box; less than `block`.
    """

    at: tuple[int, ...]
    shape: tuple[int, ...]
    scales: StoredEntry
    block: tuple[int, ...]
    phase: tuple[int, ...]
    zeros: StoredEntry | None = None

    @property
    def entries(self) -> list[StoredEntry]:
        return [self.scales] if self.zeros is None else [self.scales, self.zeros]

    @property
    def place(self) -> Hashable:
        """Return where in the tensor the blocks are."""
        return self.at, self.shape, self.block, self.phase

    @property
    def nameless(self) -> Hashable:
        return self.place, *(entry.nameless for entry in self.entries)


@record(frozen=True)
class ScaledEntry(TensorEntry):
    """Describe a tensor whose numbers are (code - zero - its block's zero) * scale, computed in float32.

    dtype: which the numbers stand for, as config.json says: not that of the codes.
    codes: a stored tensor of the same shape, of 8-bit floats or integers.
    grids: the scales of boxes that make up the tensor: one for most, several for fused weights.
    zero: what is subtracted from every code.
    """

    codes: StoredEntry
    grids: tuple[Grid, ...]
    zero: int = 0

    def renamed(self, name: str) -> ScaledEntry:
        return self if name == self.name else replace(self, name=name, codes=self.codes.renamed(name))

    @cached_property
    def nameless(self) -> Hashable:  # asked for often
        return ScaledEntry, self.dtype, self.codes.nameless, self.zero, *(grid.nameless for grid in self.grids)

    @property
    def made_of(self) -> Sequence[StoredEntry]:
        return [self.codes, *(entry for grid in self.grids for entry in grid.entries)]

    @property
    def in_blocks(self) -> Sequence[StoredEntry]:
        return (self.codes,)

    @property
    def remarks(self) -> Sequence[str]:
        return (f"read as {self.dtype.name} from {self.codes.dtype.name} with scales",)

    @property
    def bytes_read(self) -> int:
        return sum(entry.nbytes // (2 if any(part.nibbles for part in entry.parts) else 1) for entry in self.made_of)

    @property
    def computed(self) -> bool:
        return True

    @cached_property
    def scattered(self) -> bool:
        return self.codes.scattered

    @property
    def memory(self) -> int:
        """Return the bytes of a block of codes, and of the scales and zeros of the rows that it lies in."""
        held = sum(min(max(STEP, entry.shape[-1]), math.prod(entry.shape)) for grid in self.grids for entry in grid.entries)
        return STEP * self.codes.dtype.itemsize + 8 * held


def elements_of(entry: TensorEntry) -> StoredEntry:
    """Return the stored tensor that has an element for each of the entry's: of a quantised one its codes.

    Raises ValueError if the entry is made of others.
    """
    return entry.codes if isinstance(entry, ScaledEntry) else stored(entry)
