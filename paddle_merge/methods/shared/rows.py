"""Describe a tensor as rows or columns, each a vector of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass

SORTED = 1 << 18  # elements of whole rows that are sorted together, or one row


@dataclass(frozen=True)
class Rows:
    """How a tensor is made of vectors. count: how many; across: element i belongs to number i % width, and width is their
    count; else to number i // width, and width is their length."""

    count: int
    across: bool
    width: int


def rows_of(shape: tuple[int, ...], transposed: bool, first_axis: bool = False) -> Rows | None:
    """The vectors along torch's last axis: a matrix's rows, one for each output of a layer; or along its first. None if
    there is but one.

    transposed: whether the matrix is [in, out], as Paddle has it.
    """
    size = math.prod(shape)
    if len(shape) < 2 or not size:
        return None
    if first_axis != (transposed and len(shape) == 2):
        return Rows(size // shape[0], True, size // shape[0])
    return Rows(size // shape[-1], False, shape[-1])
