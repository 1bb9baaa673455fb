"""Make tensors that are views of others: assembled from parts, cut, joined or transposed. No byte is read or moved.

A part (tensors.Part) has one of two forms. A box is `shape` elements from index `at` on, one number per dimension. A run is
consecutive elements in row-major order: `at`, `shape` and `strides` have one number each.

    assemble   a tensor from its parts, after a check that they cover it
    as_boxes   a tensor's parts, all as boxes
    select     slices of a tensor along one axis
    every      every n-th slice along one axis
    nth        one slice along the first axis, without that axis
    join       tensors interleaved along one axis; the inverse of select
    transpose  a transposed matrix
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from ..dtypes import DType
from ..errors import MalformedError
from .tensors import MAX_SIZE, Part, StoredEntry, TensorEntry, stored

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
    if len(runs) == 1 and first.at == (0,) and first.shape == (size,) and first.strides == (1,) and not first.text:
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


Range = tuple[int, int]  # (first index, index behind the last)


def repeated(words: Sequence[str], sizes: Sequence[int], times: int) -> dict[str, list[Range]]:
    """Return the ranges of slices that follow one another along an axis, by word.

    words, sizes: the names and widths of the slices, in order. times: how often the whole sequence is repeated.
    """
    found: dict[str, list[Range]] = {word: [] for word in words}
    end = 0
    for _ in range(times):
        for word, size in zip(words, sizes, strict=True):
            found[word].append((end, end + size))
            end += size
    return found


# --- slices of a tensor ----------------------------------------------------------------------------------------------


def select(entry: TensorEntry, axis: int, ranges: Sequence[Range], name: str) -> StoredEntry:
    """Return the tensor `name` that consists of these ranges of indices along `axis`, in this order.

    Raises MalformedError if a range is outside of the tensor.
    """
    parts: list[Part] = []
    end = 0
    for first, stop in ranges:
        if not 0 <= first <= stop <= entry.shape[axis]:
            raise MalformedError(f"is {list(entry.shape)}, so it has no {first}..{stop} along axis {axis}")
        parts += _cut(entry, axis, (first, stop), end)
        end += stop - first
    return _made(entry, name, (*entry.shape[:axis], end, *entry.shape[axis + 1 :]), parts)


def every(entry: TensorEntry, axis: int, first: int, step: int, name: str) -> StoredEntry:
    """Return the tensor `name` that consists of the indices first, first + step, first + 2 * step ... along `axis`.

    Raises MalformedError if the tensor is stored as text, which can't be cut.
    """
    parts: list[Part] = []
    for box in as_boxes(entry):
        skipped = (first - box.at[axis]) % step
        count = len(range(skipped, box.shape[axis], step))
        if box.text:
            raise MalformedError("is stored as text, which can't be cut; save it again with pickle protocol 4")
        if count:
            to = (box.at[axis] + skipped - first) // step
            strides = (*box.strides[:axis], box.strides[axis] * step, *box.strides[axis + 1 :])
            offset = box.offset + skipped * box.strides[axis] * entry.dtype.itemsize
            at, shape = ((*old[:axis], new, *old[axis + 1 :]) for old, new in ((box.at, to), (box.shape, count)))
            parts.append(dataclasses.replace(box, offset=offset, at=at, shape=shape, strides=strides))
    size = len(range(first, entry.shape[axis], step))
    return _made(entry, name, (*entry.shape[:axis], size, *entry.shape[axis + 1 :]), parts)


def nth(entry: TensorEntry, number: int, name: str) -> StoredEntry:
    """Return the tensor `name` at index `number` of the first axis: a matrix of a stack. Raises MalformedError."""
    one = select(entry, 0, [(number, number + 1)], name)
    parts = tuple(
        dataclasses.replace(part, at=part.at[1:], shape=part.shape[1:], strides=part.strides[1:])
        if len(part.at) == len(one.shape) > 1
        else part
        for part in one.parts
    )
    return dataclasses.replace(one, shape=one.shape[1:], parts=parts)


def join(entries: Mapping[str, TensorEntry], axis: int, ranges: Mapping[str, Sequence[Range]], name: str) -> StoredEntry:
    """Return the tensor `name` in which these are interleaved along `axis`: the inverse of select.

    ranges: the ranges of indices that each entry takes, by the entries' keys. Raises MalformedError if an entry doesn't fill
    its ranges, or differs from the others in dtype or shape.
    """
    parts: list[Part] = []
    first = next(iter(entries.values()))
    size = sum(entry.shape[axis] for entry in entries.values())
    for word, entry in entries.items():
        shapes = [(*shape[:axis], *shape[axis + 1 :]) for shape in (entry.shape, first.shape)]
        if entry.dtype != first.dtype or shapes[0] != shapes[1]:
            raise MalformedError(f"can't be fused: {entry.name!r} differs in shape or dtype from {first.name!r}")
        end = 0
        for start, stop in ranges[word]:
            parts += _cut(entry, axis, (end, end + stop - start), start)
            end += stop - start
        if end != entry.shape[axis]:
            shown = list(entry.shape)
            raise MalformedError(f"can't be fused: {entry.name!r} is {shown}, but config.json says {end} along axis {axis}")
    return _made(first, name, (*first.shape[:axis], size, *first.shape[axis + 1 :]), parts)


def _made(entry: TensorEntry, name: str, shape: tuple[int, ...], parts: Sequence[Part]) -> StoredEntry:
    """Return the tensor of these parts, with the dtype of `entry`; the parts may be none if it is empty."""
    if not parts:
        return dataclasses.replace(stored(entry), name=name, shape=shape, parts=())
    return assemble(name, entry.dtype, shape, parts)


def _cut(entry: TensorEntry, axis: int, range_: Range, to: int) -> Iterable[Part]:
    """Yield the boxes of a tensor within a range along `axis`, moved so that the range begins at index `to`.

    Raises MalformedError if a box would have to be cut and is stored as text.
    """
    first, stop = range_
    for box in as_boxes(entry):
        at = box.at[axis]
        low, high = max(first, at), min(stop, at + box.shape[axis])
        if low >= high:
            continue
        if box.text and low > at:
            raise MalformedError("is stored as text, which can't be cut; save it again with pickle protocol 4")
        yield dataclasses.replace(
            box,
            offset=box.offset + (low - at) * box.strides[axis] * entry.dtype.itemsize,
            at=(*box.at[:axis], to + low - first, *box.at[axis + 1 :]),
            shape=(*box.shape[:axis], high - low, *box.shape[axis + 1 :]),
        )


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


def transpose(entry: TensorEntry, name: str) -> StoredEntry:
    """Return the transposed tensor `name`: the same boxes, with their dimensions in reverse order. Raises MalformedError."""
    boxes = [
        dataclasses.replace(box, at=box.at[::-1], shape=box.shape[::-1], strides=box.strides[::-1])
        for box in as_boxes(entry)
    ]
    return dataclasses.replace(stored(entry), name=name, shape=entry.shape[::-1], parts=tuple(boxes))
