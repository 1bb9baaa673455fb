"""Describe a tensor as rows or columns, each a vector of its own, and in which order a method ranks them."""

from __future__ import annotations

import math

from ...records import record

SORTED = 1 << 18  # elements that are sorted together when rows are ranked, or one row if it is longer


@record(frozen=True)
class Rows:
    """How a tensor consists of vectors, its rows or its columns.

    count: how many there are. across: whether element i belongs to vector i % width, where width is their count; else it
    belongs to vector i // width, where width is their length.
    """

    count: int
    across: bool
    width: int


def rows_of(shape: tuple[int, ...], transposed: bool, first_axis: bool = False) -> Rows | None:
    """Return the vectors along torch's last axis, which are a matrix's rows [out, in], one for each output of a layer.

    transposed: whether a matrix is stored [in, out], as Paddle stores it. first_axis: the vectors along torch's first axis
    instead. Returns None if the tensor is a single vector, or empty.
    """
    size = math.prod(shape)
    if len(shape) < 2 or not size:
        return None
    if first_axis != (transposed and len(shape) == 2):
        return Rows(size // shape[0], True, size // shape[0])
    return Rows(size // shape[-1], False, shape[-1])


def axes_of_rows(shape: tuple[int, ...], transposed: bool) -> tuple[int, int, int]:
    """Return (outer, length, inner): the sizes before, along and behind the axis that mergekit's DELLA ranks along.

    That is a row of torch's matrix [out, in], the weights of one output. A vector is one row; in a tensor of more axes rows
    run along the second one, as in mergekit. transposed: whether a matrix is stored [in, out].
    """
    if len(shape) < 2:
        return 1, math.prod(shape), 1
    axis = 0 if transposed and len(shape) == 2 else 1
    return math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])
