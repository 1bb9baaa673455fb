"""Read elements of tensors that are stored in parts, or with strides other than row-major ones.

A matrix that is stored transposed, or fused with others, has neighbouring elements far apart in the file. gather() turns a
range of elements into copies of boxes, and reads each with few, large system calls.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from .parts import boxes, row_major
from .tensors import Part, StoredEntry

GAP = 1 << 12  # gaps of at most so many bytes are read and discarded, to save a system call
CHUNK = 1 << 20  # bytes that are read into a buffer before they are copied to their places
Fetch = Callable[[Part, int, memoryview], None]  # fills memory with a part's bytes from a byte position of it on


class Dim(NamedTuple):
    """Describe one dimension of a copy: `size` elements, `step` elements apart in the file and `to` apart in memory."""

    size: int
    step: int
    to: int


class Box(NamedTuple):
    """Describe one copy: from element `source` of a part, counted in the file, to element `target` of the memory."""

    part: Part
    source: int
    dims: tuple[Dim, ...]
    target: int


def gather(fetch: Fetch, entry: StoredEntry, start: int, out: np.ndarray) -> None:
    """Fill `out`, of shape (n,), with the elements of `entry` from index `start` on, in row-major order.

    fetch: reads bytes of a part; what it raises is raised.
    """
    if start == 0 and len(entry.parts) == 1 and _read_at_once(fetch, entry, out):
        return
    stop = start + out.size
    whole = list(boxes(entry.shape, start, stop))
    strides = row_major(entry.shape)
    found: list[Box] = []
    for part in entry.parts:
        if len(part.at) != len(entry.shape):  # a run of elements
            low, high = max(start, part.at[0]), min(stop, part.at[0] + part.shape[0])
            if low < high:
                (step,) = part.strides
                found.append(Box(part, (low - part.at[0]) * step, (Dim(high - low, step, 1),), low - start))
            continue
        for corner, box in whole:
            lows = [max(c, a) for c, a in zip(corner, part.at, strict=True)]
            counts = [
                min(c + b, a + s) - low for c, b, a, s, low in zip(corner, box, part.at, part.shape, lows, strict=True)
            ]
            if min(counts, default=1) > 0:
                source = sum((low - a) * step for low, a, step in zip(lows, part.at, part.strides, strict=True))
                target = sum(low * to for low, to in zip(lows, strides, strict=True)) - start
                dims = tuple(Dim(*dim) for dim in zip(counts, part.strides, strides, strict=True))
                found.append(Box(part, source, dims, target))
    for copy in _series(found, out.itemsize):
        _copy(fetch, copy.part, copy.source, copy.dims, out, copy.target)


def _read_at_once(fetch: Fetch, entry: StoredEntry, out: np.ndarray) -> bool:
    """Fill `out` with all of a tensor that is small, and in one part without gaps; return whether it is such a tensor.

    Adapters have tens of thousands of small matrices that are transposed, for each of which `gather` takes long to begin.
    """
    (part,) = entry.parts
    if not (0 < out.size == math.prod(entry.shape) and out.nbytes <= CHUNK and is_dense(part, entry.shape)):
        return False
    fetch(part, 0, out.view(np.uint8).data)
    rearrange([(0, part)], out)
    return True


def is_dense(part: Part, shape: tuple[int, ...]) -> bool:
    """Return whether a part is all of a tensor of this shape, and has no gaps: its bytes are those from the first element's
    on, in whichever order."""
    return part.shape == shape and _has_no_gaps(part.shape, part.strides)


@functools.lru_cache(1 << 10)  # tens of thousands of matrices have few shapes
def _has_no_gaps(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    return 1 + sum([(count - 1) * step for count, step in zip(shape, strides, strict=True)]) == math.prod(shape)


def rearrange(parts: Sequence[tuple[int, Part]], out: np.ndarray) -> None:
    """Bring the elements of tensors into row-major order, which `out`, of shape (n,), has in the order of the file.

    parts: of each its first index in `out`, by which they are sorted, and the part without gaps that it is. Neighbours of
    one form are copied together.
    """
    first = 0
    while first < len(parts):
        (at, part), count = parts[first], 1
        shape, strides, size = part.shape, part.strides, math.prod(part.shape)
        for other_at, other in parts[first + 1 :]:
            if other.strides != strides or other.shape != shape or other_at != at + count * size:
                break
            count += 1
        steps = [step * out.itemsize for step in (size, *strides)]
        these = out[at : at + count * size]
        these.reshape(count, *shape)[...] = np.ndarray((count, *shape), out.dtype, these.copy(), 0, steps)
        first += count


def _series(boxes: list[Box], itemsize: int) -> Iterator[Box]:
    """Yield boxes so that equal ones at equal distances, in file and memory, are one box with one more dimension.

    The groups of a fused query, key and value matrix are near one another, and take one read per row instead of one per
    group.
    """

    def first(box: Box) -> int:
        """Return the byte offset of the box in the file."""
        return box.part.offset + box.source * itemsize

    alike: dict[object, list[Box]] = {}
    for number, box in enumerate(boxes):
        alike.setdefault(number if box.part.text else (box.part.file, box.dims), []).append(box)
    for group in alike.values():
        group.sort(key=first)
        while group:
            apart, along, count = 0, 0, 1
            for one, other in pairwise(group):
                steps = first(other) - first(one), other.target - one.target
                if (count > 1 and steps != (apart, along)) or steps[0] <= 0 or steps[1] <= 0 or steps[0] % itemsize:
                    break
                (apart, along), count = steps, count + 1
            dims = (*group[0].dims, Dim(count, apart // itemsize, along))
            yield group[0]._replace(dims=dims if count > 1 else group[0].dims)
            del group[:count]


def _copy(fetch: Fetch, part: Part, source: int, dims: Sequence[Dim], out: np.ndarray, target: int) -> None:
    """Copy a box from element `source` of the part to element `target` of out."""
    size, memory = out.itemsize, out.view(np.uint8).data
    dims = _merged(sorted(dims, key=lambda dim: -dim.step))
    span, split = 1, len(dims)  # elements that one read takes, gaps included: those of the dimensions from `split` on
    while split and span * size <= CHUNK and (dims[split - 1].step * size <= GAP or dims[split - 1].step <= span):
        split -= 1
        span += (dims[split].size - 1) * dims[split].step
    far, near = dims[:split], dims[split:]
    if not near or (len(near) == 1 and near[0].step == near[0].to == 1):
        for from_, to in _walk(far):
            begin = (target + to) * size
            fetch(part, (source + from_) * size, memory[begin : begin + span * size])
        return

    # Fill the buffer with a piece of what one read would take (together), or with several such reads; then copy from it.
    together = not far or span * size > CHUNK
    if together:
        rows, near = near[0], near[1:]
        span = 1 + sum((dim.size - 1) * dim.step for dim in near)
        apart = rows.step
    else:
        rows, far, apart = far[-1], far[:-1], span
    many = max(1, CHUNK // (max(apart, span) * size))
    counts = tuple(dim.size for dim in near)
    read = np.empty((min(many, rows.size) - 1) * apart + span, out.dtype)
    raw = read.view(np.uint8).data
    for from_, to in _walk(far):
        for first in range(0, rows.size, many):
            count = min(many, rows.size - first)
            begin = source + from_ + first * rows.step
            if together:
                fetch(part, begin * size, raw[: ((count - 1) * apart + span) * size])
            else:
                for row in range(count):
                    offset = row * span * size
                    fetch(part, (begin + row * rows.step) * size, raw[offset : offset + span * size])
            steps = [size * step for step in (apart, *(dim.step for dim in near))]
            tos = [size * dim.to for dim in (rows, *near)]
            place = (target + to + first * rows.to) * size
            found = np.ndarray((count, *counts), out.dtype, read, 0, steps)
            np.ndarray((count, *counts), out.dtype, out, place, tos)[...] = found


def _merged(dims: Sequence[Dim]) -> list[Dim]:
    """Return the same elements in fewer dimensions: without those of size 1, and with contiguous ones merged."""
    merged: list[Dim] = []
    for dim in dims:
        if dim.size == 1:
            continue
        if merged and merged[-1].step == dim.size * dim.step and merged[-1].to == dim.size * dim.to:
            dim = Dim(merged.pop().size * dim.size, dim.step, dim.to)
        merged.append(dim)
    return merged


def _walk(dims: Sequence[Dim]) -> Iterator[tuple[int, int]]:
    """Yield, for every index of these dimensions, its offset in the file and in memory, in elements."""
    if not dims:
        yield 0, 0
        return
    for step, to in _walk(dims[:-1]):
        for index in range(dims[-1].size):
            yield step + index * dims[-1].step, to + index * dims[-1].to
