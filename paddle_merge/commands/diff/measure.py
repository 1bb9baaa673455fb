"""Measure the differences of one tensor in two checkpoints, block by block, with sums in float64.

A tensor is always divided into the same blocks, and their sums are added in order, so the results don't depend on the number
of workers.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from ...backends.kernels import comparing
from ...backends.scratch import Scratch
from ...checkpoints.files import Files
from ...checkpoints.tensors import TensorEntry
from ...dtypes import DType
from ...records import record
from ..pairs import BLOCK, TensorReader, side_by_side

PIECE = 1 << 22  # elements that a worker takes at a time; a multiple of BLOCK
# Bits of the fraction: of two dtypes, the coarser one has fewer.
_FRACTION = {"float8_e5m2": 2, "float8_e4m3fn": 3, "bfloat16": 7, "float16": 10, "float32": 23, "float64": 52}


@record(frozen=True)
class Pair:
    """A tensor that both checkpoints have, in the same shape."""

    a: TensorEntry
    b: TensorEntry

    @property
    def name(self) -> str:
        """The tensor's name."""
        return self.a.name

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.a.shape)

    @functools.cached_property
    def units(self) -> DType | None:
        """The dtype in whose units in the last place distances are counted: the coarser one, to which the other is rounded.

        Distances of integers are their differences. None for an integer and a float, and for uint64 with other integers.
        """
        a, b = self.a.dtype, self.b.dtype
        if a.is_float != b.is_float or (a != b and "uint64" in (a.name, b.name)):
            return None
        return min(a, b, key=lambda dtype: _FRACTION[dtype.name]) if a.is_float else a

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Yield (start, stop) of the pieces that workers take.

        A tensor that is computed when it is read, or stored in parts, is one piece.
        """
        together = any(entry.computed or entry.scattered for entry in (self.a, self.b))
        step = max(1, self.size) if together else PIECE
        for start in range(0, self.size, step):
            yield start, min(start + step, self.size)


class Sums(NamedTuple):
    """Counts and sums of the differences of elements a and b. Those of several pieces can be added (`added`).

    elements: number of elements. compared: number of those that are finite in both, which are all that the sums include.
    changed: number of elements that aren't equal as numbers; NaN equals NaN, and -0.0 equals 0.0. not_finite_a,
    not_finite_b: numbers of NaN and Inf. largest: max |a - b|. absolute: sum |a - b|. squares: sum (a - b)^2. squares_a: sum
    a^2. squares_b: sum b^2. products: sum a b. buckets: numbers of elements that are 0, 1, 2-3, 4-7 ... units in the last
    place apart; empty if distances aren't defined.
    """

    elements: int = 0
    compared: int = 0
    changed: int = 0
    not_finite_a: int = 0
    not_finite_b: int = 0
    largest: float = 0.0
    absolute: float = 0.0
    squares: float = 0.0
    squares_a: float = 0.0
    squares_b: float = 0.0
    products: float = 0.0
    buckets: tuple[int, ...] = ()

    @property
    def overflowed(self) -> bool:
        """Whether a sum of finite numbers overflowed float64."""
        sums = (self.largest, self.absolute, self.squares, self.squares_a, self.squares_b, self.products)
        return not all(map(math.isfinite, sums))

    @property
    def greatest(self) -> float | None:
        """The largest |a - b|; None if no elements were compared, or if it overflows float64."""
        return _known(self.largest) if self.compared else None

    @property
    def mean(self) -> float | None:
        """The mean of |a - b|; None as for `greatest`."""
        return _known(self.absolute / self.compared) if self.compared else None

    @property
    def relative(self) -> float | None:
        """||a - b|| / ||a||; None if a is all zeros and b isn't, or if a sum overflows float64."""
        if self.compared and not self.largest:
            return 0.0
        if not self.squares_a or self.overflowed:
            return None
        return _known(math.sqrt(self.squares) / math.sqrt(self.squares_a))

    @property
    def cosine(self) -> float | None:
        """The cosine similarity of a and b; None if either is all zeros, or if a sum overflows float64."""
        if not (self.squares_a and self.squares_b):
            return None
        if not self.largest:
            return 1.0
        if self.overflowed:
            return None
        return max(-1.0, min(1.0, self.products / math.sqrt(self.squares_a) / math.sqrt(self.squares_b)))

    @property
    def changed_fraction(self) -> float | None:
        """The fraction of elements that changed; None if there are no elements."""
        return self.changed / self.elements if self.elements else None


def added(parts: Iterable[Sums]) -> Sums:
    """Return the sums of all parts together, added in order. (sum() of floats would depend on Python's version.)"""
    *columns, buckets = zip(Sums(), *parts, strict=True)
    whole = map(functools.reduce, [max if name == "largest" else operator.add for name in Sums._fields[:-1]], columns)
    return Sums._make((*whole, tuple(map(sum, itertools.zip_longest(*buckets, fillvalue=0)))))


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


class Buffers(NamedTuple):
    """Where a worker holds the blocks of both tensors, of one pair after the other."""

    a: Scratch
    b: Scratch


def measure(
    pair: Pair, start: int, stop: int, files: Files, progress: Callable[[int], object], buffers: Buffers | None = None
) -> Sums:
    """Return the counts and sums of the elements start..stop. Raises WorkError.

    files: from which is read. progress: is called with the number of bytes read after each block.
    """
    held = buffers or Buffers(Scratch(), Scratch())
    sums, counts, buckets = np.zeros(6), np.zeros(4, np.int64), np.zeros(comparing.BUCKETS, np.int64)
    finite = np.empty(min(BLOCK, stop - start), np.uint8)
    units = pair.units
    wide: type[np.unsignedinteger[Any]] = np.uint32 if units and units.is_float and units.itemsize < 8 else np.uint64
    sign = wide(1 << (8 * units.itemsize - 1) if units and units.is_float else 0)
    a, b = TensorReader(pair.a, files, held.a), TensorReader(pair.b, files, held.b)
    for _, count in side_by_side(a, b, start, stop):
        comparing.add_block(a.numbers, b.numbers, sums, counts, finite)
        if units is not None:
            comparing.add_distances(a.bits(units, wide), b.bits(units, wide), sign, finite, buckets)
        progress(count * (pair.a.dtype.itemsize + pair.b.dtype.itemsize))
    changed, not_finite_a, not_finite_b, compared = counts.tolist()
    if units is not None and not units.is_float:  # as float64, different 64-bit integers can be equal
        changed = int(buckets[1:].sum())
    within = buckets.tolist()
    while within and not within[-1]:
        within.pop()
    absolute, squares, squares_a, squares_b, products, largest = sums.tolist()
    return Sums(
        elements=stop - start,
        compared=compared,
        changed=changed,
        not_finite_a=not_finite_a,
        not_finite_b=not_finite_b,
        largest=largest,
        absolute=absolute,
        squares=squares,
        squares_a=squares_a,
        squares_b=squares_b,
        products=products,
        buckets=tuple(within),
    )
