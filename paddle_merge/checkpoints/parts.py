"""Put tensors together from parts that are stored apart, and take them apart into boxes. No byte is read or moved.

A part (tensors.Part) has one of two forms. A box is `shape` elements from index `at` on, one number per dimension. A run is
consecutive elements in row-major order: `at`, `shape` and `strides` have one number each.

    assemble   a tensor from its parts, after a check that they cover it
    as_boxes   a tensor's parts, all as boxes
    pieces     what is read for a tensor, whatever it is made of
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np

from ..dtypes import DType
from ..errors import MalformedError
from .tensors import MAX_SIZE, Origin, Part, StoredEntry, TensorEntry, stored, width

MAX_PARTS = 4096  # of one tensor


def assemble(name: str, dtype: DType, shape: tuple[int, ...], parts: Sequence[Part]) -> StoredEntry:
    """Return the tensor of this shape that the parts make up: all of them boxes, or all of them runs; at least one.

    A tensor that is contiguous in one file gets no parts. Raises MalformedError if the parts overlap, reach beyond the
    tensor, or don't cover all of it.
    """
    size, file, origin = math.prod(shape), parts[0].file, parts[0].origin
    parts = [part for part in parts if math.prod(part.shape)]
    problem = _uncovered(shape, parts)
    if problem:
        raise MalformedError(problem)
    runs = sorted((_as_run(part, shape) for part in parts), key=lambda part: part.at)
    if not runs:
        return StoredEntry(name, dtype, shape, file, 0, origin=origin)
    first = runs[0]
    if len(runs) == 1 and first.at == (0,) and first.shape == (size,) and first.strides == (1,) and not _encoded(first):
        return StoredEntry(name, dtype, shape, first.file, first.offset, origin=first.origin)
    return StoredEntry(name=name, dtype=dtype, shape=shape, file=first.file, offset=first.offset, parts=tuple(runs))


def as_boxes(entry: TensorEntry) -> list[Part]:
    """Return where a tensor is stored, as parts that are boxes. Raises MalformedError if a part can't be cut into boxes."""
    entry, strides = stored(entry), row_major(entry.shape)
    if not entry.parts:
        return [Part(entry.file, entry.offset, (0,) * len(entry.shape), entry.shape, strides, origin=entry.origin)]
    found: list[Part] = []
    for part in entry.parts:
        if len(part.at) == len(entry.shape) and len(entry.shape) != 1:
            found.append(part)
            continue
        ((first,), (count,), (step,)) = part.at, part.shape, part.strides
        for corner, shape in boxes(entry.shape, first, first + count):
            skipped = sum(index * stride for index, stride in zip(corner, strides, strict=True)) - first
            if (skipped and part.text) or step != 1:
                raise MalformedError("is in slices that can't be joined with others; save it again with pickle protocol 4")
            offset = part.offset + skipped * entry.dtype.itemsize
            found.append(dataclasses.replace(part, offset=offset, at=corner, shape=shape, strides=strides))
    return found


def _uncovered(shape: tuple[int, ...], parts: Sequence[Part]) -> str:
    """Return what is wrong with parts that should cover a tensor of this shape, as part of a sentence; "" if nothing is."""
    if math.prod(filter(None, shape)) >= MAX_SIZE:
        return f"has the shape {list(shape)}, which is too large to address"
    if len(parts) > MAX_PARTS:
        return f"is in {len(parts)} parts, and at most {MAX_PARTS} are supported"
    whole = shape
    if any(len(part.at) != len(shape) for part in parts):
        whole = (math.prod(shape),)
        if any(len(part.at) != 1 for part in parts):
            return "is stored partly as boxes and partly as flattened ranges, which isn't supported"
    for part in parts:
        if any(at + count > full for at, count, full in zip(part.at, part.shape, whole, strict=True)):
            return f"is {list(shape)}, but has a part {list(part.shape)} at {list(part.at)}"
    if len(parts) == 1 and parts[0].shape == whole:  # most tensors; the rest takes a hundred times as long
        return ""
    starts = np.array([part.at for part in parts], np.int64).reshape(len(parts), len(whole))
    stops = starts + np.array([part.shape for part in parts], np.int64).reshape(starts.shape)
    for number, one in enumerate(parts):
        both = (starts[number + 1 :] < stops[number]) & (stops[number + 1 :] > starts[number])
        if (overlapping := np.flatnonzero(both.all(axis=1))).size:
            return f"has parts that overlap, at {list(one.at)} and {list(parts[number + 1 + overlapping[0]].at)}"
    held = sum(math.prod(part.shape) for part in parts)
    return "" if held == math.prod(shape) else f"has {held} elements of {math.prod(shape)}: a part is missing"


def _encoded(part: Part) -> bool:
    """Return whether the bytes of a part are not those of its elements."""
    return bool(part.text) or part.nibbles


def _as_run(part: Part, shape: tuple[int, ...]) -> Part:
    """Return a box as a run, if its elements are consecutive both in the tensor and in the file; else as it is."""
    if not shape:
        return dataclasses.replace(part, at=(0,), shape=(1,), strides=(1,))
    if len(part.at) != len(shape):
        return part
    inner = next((axis for axis, count in enumerate(part.shape) if count > 1), len(shape) - 1)
    together = all(
        count == 1 or stride == step
        for count, stride, step in zip(part.shape, part.strides, row_major(part.shape), strict=True)
    )
    if not together or part.shape[inner + 1 :] != shape[inner + 1 :]:
        return part
    start = sum(at * step for at, step in zip(part.at, row_major(shape), strict=True))
    return dataclasses.replace(part, at=(start,), shape=(math.prod(part.shape),), strides=(1,))


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides, in elements, of a contiguous tensor in row-major order."""
    strides, step = [1] * len(shape), 1
    for axis in range(len(shape) - 1, 0, -1):
        step *= shape[axis]
        strides[axis - 1] = step
    return tuple(strides)


def boxes(shape: tuple[int, ...], start: int, stop: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yield the elements start..stop, counted in row-major order, as few boxes (first index, shape) of a tensor."""
    if not shape:
        if start < stop:
            yield (), ()
        return
    inner = max(1, math.prod(shape[1:]))
    first, last = -(-start // inner), stop // inner  # whole rows
    if first > last:  # all within one row
        for corner, box in boxes(shape[1:], start - last * inner, stop - last * inner):
            yield (last, *corner), (1, *box)
        return
    if start < first * inner:
        for corner, box in boxes(shape[1:], start - (first - 1) * inner, inner):
            yield (first - 1, *corner), (1, *box)
    if first < last:
        yield (first, *(0 for _ in shape[1:])), (last - first, *shape[1:])
    if last * inner < stop:
        for corner, box in boxes(shape[1:], 0, stop - last * inner):
            yield (last, *corner), (1, *box)


def pieces(entry: TensorEntry) -> list[tuple[Origin, object, float]]:
    """Return (origin, box, number of bytes) of what is read for a tensor. Boxes with the same elements are equal."""
    if not isinstance(entry, StoredEntry):
        return [piece for one in entry.made_of for piece in pieces(one)]
    if not entry.parts:
        size = math.prod(entry.shape)
        return [(entry.origin, (entry.file, entry.offset, ((size, 1),) if size != 1 else ()), entry.nbytes)]
    return [
        (part.origin, (part.file, part.offset, _dims(part.shape, part.strides)), math.prod(part.shape) * width(part, entry))
        for part in entry.parts
    ]


def _dims(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Return sizes and strides by falling stride, with dimensions merged that lie together."""
    found: list[tuple[int, int]] = []
    for stride, size in sorted(zip(strides, shape, strict=True), reverse=True):
        if size == 1:
            continue
        if found and found[-1][1] == size * stride:
            found[-1] = found[-1][0] * size, stride
        else:
            found.append((size, stride))
    return tuple(found)
