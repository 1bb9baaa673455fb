"""Define the scales of a weight that is stored as 8-bit codes: their shape, their place, and where the weight may be cut."""

from __future__ import annotations

import math
from dataclasses import replace

from ..checkpoints.fingerprint import BLOCK
from ..checkpoints.formats.header import Held
from ..dtypes import DType
from ..records import record

TOGETHER = 1 << 18  # elements that are encoded together, or one band, if that is more


@record(frozen=True)
class Scales:
    """The scales of one weight.

    shape: of the weight: rows and columns, perhaps of several matrices. A band is the rows that share a row of scales.
    block: rows and columns that share a scale. dtype: of the scales. powers: whether they are powers of 2. offset: of the
    first scale in the weight's file.
    """

    name: str
    shape: tuple[int, ...]
    block: tuple[int, int]
    dtype: DType
    powers: bool = False
    offset: int = 0

    @property
    def grid(self) -> tuple[int, ...]:
        """The shape of the scales themselves."""
        *matrices, rows, columns = self.shape
        return *matrices, -(-rows // self.block[0]), -(-columns // self.block[1])

    @property
    def hashed(self) -> int:
        """How many scales their fingerprint hashes together: those of `unit` elements, because pieces begin at such."""
        return self.first(self.unit) if self.unit < math.prod(self.shape) else max(1, math.prod(self.grid))

    @property
    def nbytes(self) -> int:
        return math.prod(self.grid) * self.dtype.itemsize

    @property
    def held(self) -> Held:
        """What a file holds of them."""
        return Held(self.name, self.dtype, self.grid, self.nbytes)

    def at(self, offset: int) -> Scales:
        """Return the same scales at a place in a file."""
        return replace(self, offset=offset)

    @property
    def together(self) -> int:
        """The elements that are encoded together: whole bands, of one matrix."""
        *_, rows, columns = self.shape
        band = self.block[0] * columns
        return min(rows * columns, max(1, TOGETHER // max(1, band)) * band)

    @property
    def unit(self) -> int:
        """The number of elements at multiples of which the weight may be cut, for its bands and for its fingerprint."""
        *matrices, rows, columns = self.shape
        whole = rows % self.block[0] == 0 or math.prod(matrices) == 1
        return math.lcm(BLOCK, max(1, (self.block[0] if whole else rows) * columns))

    def first(self, start: int) -> int:
        """Return the index of the first scale of the band that begins at element `start` of the weight."""
        *_, rows, columns = self.shape
        matrix, row = divmod(start // max(1, columns), max(1, rows))
        return (matrix * self.grid[-2] + row // self.block[0]) * self.grid[-1]
