"""Tensors that lie in parts, or with other strides than row-major ones: read in few, large runs, whatever the strides."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from .tensors import Part, StoredEntry
from .views import boxes, row_major

GAP = 1 << 12  # bytes that are read and thrown away sooner than another system call is made
CHUNK = 1 << 20  # bytes read before they are put in place
Fetch = Callable[[Part, int, memoryview], None]  # fill memory with a part's bytes from so many bytes on


class Dim(NamedTuple):
    """So many elements, how many elements apart in the file, and how many in the memory to fill."""

    size: int
    step: int
    to: int


class Box(NamedTuple):
    """What to copy at a time: from element `source` of the part to element `target` of the memory."""

    part: Part
    source: int
    dims: tuple[Dim, ...]
    target: int


def gather(fetch: Fetch, entry: StoredEntry, start: int, out: np.ndarray) -> None:
    """Fill out, flat, with the elements of `entry` from index `start` on."""
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


def _series(boxes: list[Box], itemsize: int) -> Iterator[Box]:
    """Boxes at equal distances, in one file and in memory, as one of a dimension more: the keys of a fused matrix lie near
    one another, and take one read per row instead of one per key."""

    def first(box: Box) -> int:  # byte in the file
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
    """A box from element `source` of the part to element `target` of out."""
    size, memory = out.itemsize, out.view(np.uint8).data
    dims = _merged(sorted(dims, key=lambda dim: -dim.step))
    span, split = 1, len(dims)  # the dimensions from split on are read at one go, gaps and all
    while split and span * size <= CHUNK and (dims[split - 1].step * size <= GAP or dims[split - 1].step <= span):
        split -= 1
        span += (dims[split].size - 1) * dims[split].step
    far, near = dims[:split], dims[split:]
    if not near or (len(near) == 1 and near[0].step == near[0].to == 1):
        for from_, to in _walk(far):
            begin = (target + to) * size
            fetch(part, (source + from_) * size, memory[begin : begin + span * size])
        return

    together = not far or span * size > CHUNK  # cut what is read at one go; else read several of them, then put in place
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
    """The same elements in fewer dimensions."""
    merged: list[Dim] = []
    for dim in dims:
        if dim.size == 1:
            continue
        if merged and merged[-1].step == dim.size * dim.step and merged[-1].to == dim.size * dim.to:
            dim = Dim(merged.pop().size * dim.size, dim.step, dim.to)
        merged.append(dim)
    return merged


def _walk(dims: Sequence[Dim]) -> Iterator[tuple[int, int]]:
    """For every index, how far it is in the file and in memory."""
    if not dims:
        yield 0, 0
        return
    for step, to in _walk(dims[:-1]):
        for index in range(dims[-1].size):
            yield step + index * dims[-1].step, to + index * dims[-1].to
