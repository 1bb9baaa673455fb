"""Describe a tensor with LoRA adapters: which stored tensor is read, and what adapted.py does to its elements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from ...checkpoints.tensors import StoredEntry, TensorEntry, stored

STEP = 1 << 16  # elements that are read and changed at a time; every element comes out the same for any other number


@dataclass(frozen=True)
class LowRank:
    """Describe a change of a matrix (rows, columns): scale * left @ middle @ right is added.

    left: (rows, r), None for [[1]]; middle: (r, r), None for the identity; right: (r, columns), or (columns,) if r is 1.
    A vector (columns,) counts as a matrix of one row.
    """

    left: TensorEntry | None
    right: TensorEntry
    scale: float
    middle: TensorEntry | None = None

    @property
    def entries(self) -> list[TensorEntry]:
        return [entry for entry in (self.left, self.middle, self.right) if entry is not None]


@dataclass(frozen=True)
class Lengths:
    """Describe a change of a matrix: every row (axis 0) or column (axis 1) is scaled to the L2 norm that is given for it."""

    lengths: TensorEntry
    axis: int

    @property
    def entries(self) -> list[TensorEntry]:
        return [self.lengths]


@dataclass(frozen=True)
class AdaptedEntry(TensorEntry):
    """Describe a tensor that is merged with the changes of adapters applied.

    dtype: that of the checkpoint's tensor.
    stored: the tensor that is read, of any float dtype: the checkpoint's, or an adapter's that replaces it.
    changes: in the order in which they are applied.
    replaced: the checkpoint's tensor, if `stored` is an adapter's; it is not read.
    """

    stored: StoredEntry
    changes: tuple[LowRank | Lengths, ...] = ()
    replaced: TensorEntry | None = field(default=None, compare=False, repr=False)

    @property
    def made_of(self) -> Sequence[TensorEntry]:
        return [self.stored, *(entry for change in self.changes for entry in change.entries)]

    @property
    def computed(self) -> bool:
        return True

    @property
    def whole(self) -> bool:
        return any(isinstance(change, Lengths) for change in self.changes)

    @property
    def scattered(self) -> bool:
        return self.stored.scattered

    @property
    def memory(self) -> int:
        factors = sum(math.prod(entry.shape) for change in self.changes for entry in change.entries)
        return 16 * factors + STEP * self.stored.dtype.itemsize  # factors: float64, and the dtype that is merged in


def read_from(entry: TensorEntry) -> StoredEntry:
    """Return the stored tensor that is read for an entry, before adapters change it. Raises ValueError if it has several."""
    return entry.stored if isinstance(entry, AdaptedEntry) else stored(entry)
