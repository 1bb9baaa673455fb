"""Describe a tensor whose rows are those of one tokenizer, taken from tensors with other vocabularies."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ...checkpoints.tensors import TensorEntry
from ...records import record

STEP = 1 << 16  # elements that are read at a time; every element comes out the same for any other number


@record(frozen=True)
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


@record(frozen=True)
class AlignedEntry(TensorEntry):
    """Describe a tensor with a row per token (a column, if the axis is 1) that consists of rows of several tensors.

    Rows that neither picks nor means give are zeros.
    means: (n, 2) int64, as bytes: first row and number of rows that are the mean of all others. remark: on what was done,
    for people; "" if others say so.
    """

    axis: int
    picks: tuple[Pick, ...]
    means: bytes = b""
    remark: str = "aligned token by token"

    @property
    def made_of(self) -> Sequence[TensorEntry]:
        return [pick.entry for pick in self.picks]

    def parts_of(self, number: int) -> Sequence[tuple[int, TensorEntry]]:
        return [(pick.number, pick.entry) for pick in self.picks]

    @property
    def bytes_read(self) -> int:
        """Return the bytes of the rows that are picked."""
        return sum(
            pick.entry.bytes_read
            * int(np.frombuffer(pick.runs, np.int64)[2::5].sum())
            // max(1, pick.entry.shape[self.axis])
            for pick in self.picks
        )

    @property
    def remarks(self) -> Sequence[str]:
        return (self.remark,) if self.remark else ()

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


@record(frozen=True)
class Combination:
    """Say of which rows of a tensor other rows are combinations, with which coefficients.

    rows: (m,) int64, coefficients: (m,) float64, both as bytes. counts: (n,) int64, as bytes: how many of these belong to
    each of the n rows that are made.
    """

    rows: bytes
    coefficients: bytes
    counts: bytes


@record(frozen=True)
class Pursuit:
    """Say that rows are combined as in another model: the coefficients are those with which rows of its tokens make up the
    rows of the tokens that are made there (pursuit.py), at most k of them for each.

    atoms: (s, width), the other model's rows of tokens that both have. targets: (n, width), its rows of the tokens that are
    made. rows: (s,) int64, as bytes: the rows of the tensor that has to be completed, of the same tokens as atoms.
    """

    atoms: AlignedEntry
    targets: AlignedEntry
    rows: bytes
    k: int


@record(frozen=True)
class CompletedEntry(TensorEntry):
    """Describe a tensor with a row per token (a column, if the axis is 1), some of whose rows are combinations of others.

    known: the tensor with zeros in place of these. source: the input's tensor whose rows are combined. at: (n,) int64, as
    bytes, in ascending order: the rows that are made. how: of what.
    """

    axis: int
    known: AlignedEntry
    source: TensorEntry
    at: bytes
    how: Combination | Pursuit

    @property
    def made_of(self) -> Sequence[TensorEntry]:
        donors = [self.how.atoms, self.how.targets] if isinstance(self.how, Pursuit) else []
        return [self.known, self.source, *donors]

    def parts_of(self, number: int) -> Sequence[tuple[int, TensorEntry]]:
        return ((number, self.known),)

    @property
    def remarks(self) -> Sequence[str]:
        return (f"{self.count} rows made of others",)

    @property
    def computed(self) -> bool:
        return True

    @property
    def whole(self) -> bool:
        return isinstance(self.how, Pursuit) or self.known.whole or self.source.whole

    @property
    def count(self) -> int:
        """Return how many rows are made."""
        return len(self.at) // 8

    @property
    def memory(self) -> int:
        """Return the bytes of both readers, the coefficients and their rows, a few rows, and what a pursuit takes."""
        found = self.known.memory + self.source.memory + len(self.at)
        found += 4 * 8 * max(math.prod(self.shape) // max(1, self.shape[self.axis]), self.source.shape[self.axis])
        if isinstance(self.how, Combination):
            return found + 3 * (len(self.how.rows) + len(self.how.coefficients))
        how = self.how
        return found + 16 * how.k * self.count + how.atoms.memory + how.targets.memory + pursuit_memory(how)


CACHE = 1 << 28  # bytes of atoms that are kept; if there are more, they are read again for each step
STATE = 1 << 28  # bytes of what is known of the targets that are approximated together
READ = 1 << 22  # elements of atoms that are read at a time


def together(width: int, k: int) -> int:
    """Return how many targets a pursuit approximates together."""
    return min(512, max(16, STATE // max(1, 8 * width * k)))


def pursuit_memory(how: Pursuit) -> int:
    """Return the bytes that a pursuit takes: its state, and atoms with their products with targets."""
    (atoms, width), batch = how.atoms.shape, together(how.targets.shape[1], how.k)
    kept = atoms * width if atoms * width * 8 <= CACHE else READ + width
    return 8 * (batch * (how.k * (width + how.k + 4) + 6 * width) + 2 * kept + 2 * batch * max(1, READ // width))
