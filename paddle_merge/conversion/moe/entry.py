"""Describe a tensor whose slices are those of another one in another order: experts, and neurons of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from hashlib import blake2b

from ...checkpoints.tensors import TensorEntry
from ...records import record

PANEL = 16 << 20  # bytes of a matrix that are read at once, to take its rows in another order


@record(frozen=True, repr=False)
class ReorderedEntry(TensorEntry):
    """Describe a tensor, seen as matrices [G, R, C], that takes matrices, and rows or columns of each, of `entry`:

        [g, r, c]  is  entry[matrices[g], slices[g, r], c]  if axis is 1,  entry[matrices[g], r, slices[g, c]]  if it is 2

    form: (G, R, C), of as many elements as shape. matrices: (G,) int32, as bytes so that entries can be compared; b"": each
    its own. slices: (G, R or C) int32, as bytes; b"": each its own.
    """

    entry: TensorEntry
    form: tuple[int, int, int]
    matrices: bytes = b""
    slices: bytes = b""
    axis: int = 1

    def __repr__(self) -> str:
        """Return a text that differs between different orders, and is short: journals and ranks compare it."""
        digest = blake2b(self.matrices + b"|" + self.slices, digest_size=16).hexdigest()
        return f"ReorderedEntry({self.name!r}, {self.form}, {self.axis}, {digest}, {self.entry!r})"

    @property
    def made_of(self) -> Sequence[TensorEntry]:
        return (self.entry,)

    def parts_of(self, number: int) -> Sequence[tuple[int, TensorEntry]]:
        return ((number, self.entry),)

    @property
    def remarks(self) -> Sequence[str]:
        return ("experts and neurons in the order of the reference",)

    @property
    def computed(self) -> bool:
        return self.entry.computed

    @property
    def whole(self) -> bool:
        return self.entry.whole

    @property
    def holds(self) -> bool:
        """Return whether a reader holds a whole matrix: one that is small, or whose rows are scattered in the file."""
        small = self.form[1] * self.form[2] * (8 if self.computed else self.dtype.itemsize) <= PANEL
        return bool(self.slices) and self.axis == 1 and (small or any(one.scattered for one in self._read))

    @property
    def _read(self) -> Sequence[TensorEntry]:
        return self.entry.made_of or (self.entry,)

    @property
    def memory(self) -> int:
        """Return the bytes of a matrix if one is held, else of a few rows, and of the indices."""
        _, rows, columns = self.form
        width = 8 if self.computed else self.dtype.itemsize
        held = math.prod((rows, columns)) if self.holds else 2 * max(columns, 1 << 16)
        return self.entry.memory + held * width + 2 * (len(self.matrices) + len(self.slices))
