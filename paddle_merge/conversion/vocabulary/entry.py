"""Describe a tensor whose rows are those of one tokenizer, taken from tensors with other vocabularies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ...checkpoints.tensors import TensorEntry

STEP = 1 << 16  # elements that are read at a time; every element comes out the same for any other number


@dataclass(frozen=True)
class Pick:
    """Rows of a tensor (axis 1: columns) that become rows of an aligned one.

    number: of its checkpoint, in Recipe.titles.
    runs: (n, 5) int64, as bytes so that entries can be compared, in order: the first row of the aligned tensor, the first
    row of this one, how many rows; of how many tensors those rows are the mean, and the place of this one among them.
    """

    number: int
    entry: TensorEntry
    runs: bytes


@dataclass(frozen=True)
class AlignedEntry(TensorEntry):
    """A tensor with a row (axis 1: a column) per token, assembled from rows of several tensors. Rows that no pick gives are
    zeros.

    means: (n, 2) int64, as bytes: first row and count of the rows that are the mean of all others.
    """

    axis: int
    picks: tuple[Pick, ...]
    means: bytes = b""

    @property
    def made_of(self) -> Sequence[TensorEntry]:
        return [pick.entry for pick in self.picks]

    @property
    def computed(self) -> bool:
        return True

    @property
    def whole(self) -> bool:
        return bool(self.means) or any(pick.entry.whole for pick in self.picks)

    @property
    def memory(self) -> int:
        """The runs and what follows from them, the mean row, and a buffer for each pick and another."""
        count, rows = len(self.picks), self.shape[self.axis]
        known = rows * (16 + 24 * count) if self.axis else 16 * math.prod(self.shape[1:])
        longest = max([STEP, *(pick.entry.shape[self.axis] for pick in self.picks)])
        return known + longest * 8 * (count + 1) + sum(2 * len(pick.runs) + pick.entry.memory for pick in self.picks)
