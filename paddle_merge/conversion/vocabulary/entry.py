"""Describe a tensor whose rows are those of one tokenizer, taken from tensors with other vocabularies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ...checkpoints.tensors import TensorEntry

STEP = 1 << 16  # elements that are read at a time; every element comes out the same for any other number


@dataclass(frozen=True)
class Pick:
    """Describe which rows of a tensor (columns, if the axis is 1) become rows of an aligned one.

    number: of the tensor's checkpoint, in Recipe.titles.
    runs: (n, 5) int64, as bytes so that entries can be compared. Each row of it is: the first row in the aligned tensor, the
        first row in this one, the number of rows; of how many tensors these rows are the mean, and the place of this tensor
        among those.
    """

    number: int
    entry: TensorEntry
    runs: bytes


@dataclass(frozen=True)
class AlignedEntry(TensorEntry):
    """Describe a tensor with a row per token (a column, if the axis is 1) that consists of rows of several tensors.

    Rows that neither picks nor means give are zeros.
    means: (n, 2) int64, as bytes: first row and number of rows that are the mean of all others.
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
        """Return the bytes of the runs and their indices, the mean row, one buffer per pick and one more."""
        count, rows = len(self.picks), self.shape[self.axis]
        known = rows * (16 + 24 * count) if self.axis else 16 * math.prod(self.shape[1:])
        longest = max([STEP, *(pick.entry.shape[self.axis] for pick in self.picks)])
        return known + longest * 8 * (count + 1) + sum(2 * len(pick.runs) + pick.entry.memory for pick in self.picks)
