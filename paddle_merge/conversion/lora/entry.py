"""Describe a tensor with LoRA adapters: which stored tensor is read, and what adapted.py does to its elements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import field
from functools import cached_property
from typing import NamedTuple

from ...checkpoints.scaled import ScaledEntry
from ...checkpoints.tensors import StoredEntry, TensorEntry, stored
from ...records import record

STEP = 1 << 16  # elements that are read and changed at a time; every element comes out the same for any other number


@record(frozen=True)
class LowRank:
    """Describe a change of a matrix (rows, columns): scale * left @ middle @ right is added.

    left: (rows, r), None for [[1]]; middle: (r, r), None for the identity; right: (r, columns), or (columns,) if r is 1.
    A vector (columns,) counts as a matrix of one row. A convolution's weight counts as a matrix of one row per output, and
    so do factors of more than two axes.
    place: of the matrix in a tensor that is a stack of such matrices (the experts of a layer), counted from 0.
    """

    left: TensorEntry | None
    right: TensorEntry
    scale: float
    middle: TensorEntry | None = None
    place: int = 0

    @property
    def entries(self) -> list[TensorEntry]:
        return [entry for entry in (self.left, self.middle, self.right) if entry is not None]

    @property
    def size(self) -> int:
        """Return the number of elements of the matrix."""
        rows = 1 if self.left is None else self.left.shape[0]
        return rows * math.prod(self.right.shape[1:] if len(self.right.shape) > 1 else self.right.shape)

    @property
    def rank(self) -> int:
        return self.right.shape[0] if len(self.right.shape) > 1 else 1


@record(frozen=True)
class Lengths:
    """Describe a change of a matrix: every row (axis 0) or column (axis 1) is scaled to the L2 norm that is given for it."""

    lengths: TensorEntry
    axis: int

    @property
    def entries(self) -> list[TensorEntry]:
        return [self.lengths]


@record(frozen=True)
class Rows:
    """Describe a change of a matrix: some rows (axis 0) or columns (axis 1) are replaced.

    numbers: of these rows; of those that are given twice the last counts. values: (len(numbers), n).
    """

    numbers: tuple[int, ...]
    values: TensorEntry
    axis: int = 0

    @property
    def entries(self) -> list[TensorEntry]:
        return [self.values]


@record(frozen=True)
class Requantised:
    """Describe a change of a matrix: it is quantised and dequantised, as by Paddle's weight_quantize (weight_only_int8,
    weight_only_int4).

    Every row (axis 0) or column (axis 1) has a scale of its own, its largest magnitude / levels. A number w becomes the
    integer nearest to w / largest * levels, halves away from zero, times the scale; scale and product are rounded to the
    tensor's dtype.
    """

    axis: int
    levels: int

    @property
    def entries(self) -> list[TensorEntry]:
        return []


Change = LowRank | Lengths | Rows | Requantised


class Update(NamedTuple):
    """Hold the changes that a module of an adapter makes to one tensor.

    target: the tensor's name. exclusive: whether no other module may change it, as for weights; False for biases.
    """

    target: str
    changes: Sequence[Change]
    exclusive: bool = True


@record(frozen=True)
class AdaptedEntry(TensorEntry):
    """Describe a tensor that is merged with the changes of adapters applied.

    dtype: that of the checkpoint's tensor.
    stored: the tensor that is read, of any float dtype, or quantised: the checkpoint's, or an adapter's that replaces it.
    changes: in the order in which they are applied.
    replaced: the checkpoint's tensor, if `stored` is an adapter's; it is not read.
    """

    stored: StoredEntry | ScaledEntry
    changes: tuple[Change, ...] = ()
    replaced: TensorEntry | None = field(default=None, compare=False, repr=False)

    @cached_property  # planning asks for them ten times
    def made_of(self) -> Sequence[TensorEntry]:
        return [self.stored, *[entry for change in self.changes for entry in change.entries]]

    @property
    def in_blocks(self) -> Sequence[StoredEntry]:
        return self.stored.in_blocks

    @property
    def remarks(self) -> Sequence[str]:
        replaced = ["replaced by an adapter's"] if self.replaced is not None else []
        return [*self.stored.remarks, *replaced, *map(_remark, self.changes)]

    @property
    def bytes_read(self) -> int:
        return self.stored.bytes_read

    @property
    def computed(self) -> bool:
        return True

    @property
    def whole(self) -> bool:
        return any(isinstance(change, Lengths | Requantised) for change in self.changes)

    @property
    def scattered(self) -> bool:
        return self.stored.scattered

    @property
    def memory(self) -> int:
        """Return the bytes of the factors, float64 and in the dtype that is merged in. Of a stack one matrix's are held."""
        held: dict[int, int] = {}
        for change in self.changes:
            place = change.place if isinstance(change, LowRank) else -1
            held[place] = held.get(place, 0) + sum([math.prod(entry.shape) for entry in change.entries])
        factors = held.pop(-1, 0) + max(held.values(), default=0)
        factors += sum(self.shape[change.axis] for change in self.changes if isinstance(change, Requantised))
        return 16 * factors + STEP * self.stored.dtype.itemsize + self.stored.memory


def _remark(change: Change) -> str:
    match change:
        case Lengths():
            return "with DoRA's lengths"
        case Requantised():
            return f"quantised to {2 * change.levels + 1} levels and back"
        case Rows():
            return f"with {len(change.numbers)} rows of an adapter"
    if change.left is None:
        return f"plus an adapter's bias, scale {change.scale:.6g}"
    return f"plus an adapter's r={change.rank}, scale {change.scale:.6g}"


def read_from(entry: TensorEntry) -> StoredEntry | ScaledEntry:
    """Return the tensor that is read for an entry, before adapters change it. Raises ValueError if it has several."""
    return entry.stored if isinstance(entry, AdaptedEntry) else entry if isinstance(entry, ScaledEntry) else stored(entry)
