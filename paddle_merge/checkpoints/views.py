"""Make tensors that are views of others: cut, joined or transposed. No byte is read or moved.

    select     slices of a tensor along one axis
    every      every n-th slice along one axis
    nth        one slice along the first axis, without that axis
    join       tensors interleaved along one axis; the inverse of select
    stack      tensors along a new first axis; the inverse of nth
    transpose  a transposed matrix

A view of a quantised tensor has views of its codes and of its scales, wherever its blocks begin.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from ..errors import MalformedError
from .parts import as_boxes, assemble, row_major
from .scaled import Grid, ScaledEntry
from .tensors import Part, StoredEntry, TensorEntry, stored

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


def select(entry: TensorEntry, axis: int, ranges: Sequence[Range], name: str) -> TensorEntry:
    """Return the tensor `name` that consists of these ranges of indices along `axis`, in this order.

    Raises MalformedError if a range is outside of the tensor.
    """
    parts, grids = list[Part](), list[Grid]()
    end = 0
    for first, stop in ranges:
        if not 0 <= first <= stop <= entry.shape[axis]:
            raise MalformedError(f"is {list(entry.shape)}, so it has no {first}..{stop} along axis {axis}")
        if isinstance(entry, ScaledEntry):
            grids += _cut_grids(entry, axis, (first, stop), end)
        else:
            parts += _cut(entry, axis, (first, stop), end)
        end += stop - first
    if isinstance(entry, ScaledEntry):
        return _scaled(entry, select(entry.codes, axis, ranges, name), grids)
    return _made(entry, name, (*entry.shape[:axis], end, *entry.shape[axis + 1 :]), parts)


def every(entry: TensorEntry, axis: int, first: int, step: int, name: str) -> TensorEntry:
    """Return the tensor `name` that consists of the indices first, first + step, first + 2 * step ... along `axis`.

    Raises MalformedError if the tensor is stored as text, or has blocks of scales, which can't be cut so.
    """
    if isinstance(entry, ScaledEntry):
        grids = [found for grid in entry.grids if (found := _every_of(grid, axis, first, step)) is not None]
        return _scaled(entry, every(entry.codes, axis, first, step, name), grids)
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


def nth(entry: TensorEntry, number: int, name: str) -> TensorEntry:
    """Return the tensor `name` at index `number` of the first axis: a matrix of a stack. Raises MalformedError."""
    if isinstance(entry, ScaledEntry):
        cut = _cut_grids(entry, 0, (number, number + 1), 0)
        return _scaled(entry, nth(entry.codes, number, name), [_without_first(grid) for grid in cut])
    one = stored(select(entry, 0, [(number, number + 1)], name))
    parts = tuple(
        dataclasses.replace(part, at=part.at[1:], shape=part.shape[1:], strides=part.strides[1:])
        if len(part.at) == len(one.shape) > 1
        else part
        for part in one.parts
    )
    return dataclasses.replace(one, shape=one.shape[1:], parts=parts)


def join(entries: Mapping[str, TensorEntry], axis: int, ranges: Mapping[str, Sequence[Range]], name: str) -> TensorEntry:
    """Return the tensor `name` in which these are interleaved along `axis`: the inverse of select.

    ranges: the ranges of indices that each entry takes, by the entries' keys. Raises MalformedError if an entry doesn't fill
    its ranges, or differs from the others in dtype or shape.
    """
    scaled = [entry for entry in entries.values() if isinstance(entry, ScaledEntry)]
    if len({(entry.zero, entry.codes.dtype) for entry in scaled}) > 1 or len(scaled) not in (0, len(entries)):
        raise MalformedError("can't be fused: the parts are quantised in different ways, or only some of them are")
    if scaled:
        grids = [grid for word, entry in zip(entries, scaled, strict=True) for grid in _placed(entry, axis, ranges[word])]
        codes = join({word: entry.codes for word, entry in zip(entries, scaled, strict=True)}, axis, ranges, name)
        return _scaled(scaled[0], codes, grids)
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


def stack(entries: Sequence[TensorEntry], name: str) -> TensorEntry:
    """Return the tensor `name` whose slices along a new first axis are these: the inverse of nth.

    Raises MalformedError if they differ in dtype or shape, are quantised in different ways, or can't be cut into boxes.
    """
    first, parts = entries[0], list[Part]()
    if any(isinstance(entry, ScaledEntry) for entry in entries):
        return _stacked(entries, name)
    for number, entry in enumerate(entries):
        if (entry.dtype, entry.shape) != (first.dtype, first.shape):
            raise MalformedError(f"can't be stacked: {entry.name!r} differs in shape or dtype from {first.name!r}")
        for box in as_boxes(entry):
            apart = box.shape[0] * box.strides[0] if box.shape else 1
            at, shape, strides = (number, *box.at), (1, *box.shape), (apart, *box.strides)
            parts.append(dataclasses.replace(box, at=at, shape=shape, strides=strides))
    return _made(first, name, (len(entries), *first.shape), parts)


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


def transpose(entry: TensorEntry, name: str) -> TensorEntry:
    """Return the transposed tensor `name`: the same boxes, with their dimensions in reverse order. Raises MalformedError."""
    if isinstance(entry, ScaledEntry):
        return _scaled(entry, transpose(entry.codes, name), [_transposed(grid) for grid in entry.grids])
    entry = stored(entry)
    if not entry.parts:  # as most are
        at, shape, strides = _turned(entry.shape)
        whole = Part(entry.file, entry.offset, at, shape, strides, (), entry.origin)
        return StoredEntry(name, entry.dtype, shape, entry.file, entry.offset, (whole,), entry.origin)
    boxes = [
        Part(box.file, box.offset, box.at[::-1], box.shape[::-1], box.strides[::-1], box.text, box.origin, box.nibbles)
        for box in as_boxes(entry)
    ]
    return StoredEntry(name, entry.dtype, entry.shape[::-1], entry.file, entry.offset, tuple(boxes), entry.origin)


@functools.lru_cache(1 << 10)  # tens of thousands of matrices have few shapes
def _turned(shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Return the first index, the shape and the strides of the box that a contiguous tensor of this shape is, transposed."""
    return (0,) * len(shape), shape[::-1], row_major(shape)[::-1]


# --- the scales of a view --------------------------------------------------------------------------------------------


def _scaled(entry: ScaledEntry, codes: TensorEntry, grids: Iterable[Grid]) -> ScaledEntry:
    """Return a view of a quantised tensor, with the name and shape of its codes."""
    return dataclasses.replace(entry, name=codes.name, shape=codes.shape, codes=stored(codes), grids=tuple(grids))


def _changed(grid: Grid, view: Callable[[StoredEntry], TensorEntry], **values: Any) -> Grid:
    """Return a grid with a view of its scales, and of its zeros, and with other values."""
    zeros = None if grid.zeros is None else stored(view(grid.zeros))
    return dataclasses.replace(grid, scales=stored(view(grid.scales)), zeros=zeros, **values)


def _with(values: tuple[int, ...], axis: int, value: int) -> tuple[int, ...]:
    return (*values[:axis], value, *values[axis + 1 :])


def _cut_grids(entry: ScaledEntry, axis: int, range_: Range, to: int) -> Iterator[Grid]:
    """Yield the grids of a tensor within a range along `axis`, moved so that the range begins at index `to`."""
    for grid in entry.grids:
        at, size = grid.at[axis], grid.block[axis]
        low, high = max(range_[0], at), min(range_[1], at + grid.shape[axis])
        if low >= high:
            continue
        begin, end = (index - at + grid.phase[axis] for index in (low, high))
        blocks = begin // size, -(-end // size)
        yield _changed(
            grid,
            functools.partial(_range, axis=axis, blocks=blocks),
            at=_with(grid.at, axis, to + low - range_[0]),
            shape=_with(grid.shape, axis, high - low),
            phase=_with(grid.phase, axis, begin % size),
        )


def _range(entry: StoredEntry, axis: int, blocks: Range) -> TensorEntry:
    return select(entry, axis, [blocks], entry.name)


def _every_of(grid: Grid, axis: int, first: int, step: int) -> Grid | None:
    """Return the grid of every `step`-th index along `axis`; None if there is none in its box. Raises MalformedError."""
    at, size = grid.at[axis], grid.block[axis]
    skipped = (first - at) % step
    count = len(range(skipped, grid.shape[axis], step))
    if not count:
        return None
    begin = skipped + grid.phase[axis]
    low, high = begin // size, (begin + (count - 1) * step) // size + 1
    moved = {"at": _with(grid.at, axis, (at + skipped - first) // step), "shape": _with(grid.shape, axis, count)}

    def view(entry: StoredEntry) -> TensorEntry:
        kept = select(entry, axis, [(low, high)], entry.name)
        return every(kept, axis, 0, step // size, entry.name) if step % size == 0 and high - low > 1 else kept

    if high - low == 1:
        block, phase = count, 0
    elif size % step == 0:
        block, phase = size // step, begin % size // step
    elif step % size == 0:
        block, phase = 1, 0
    else:
        raise MalformedError(f"has blocks of {size} along axis {axis}, and every {step}th index can't be taken of them")
    return _changed(grid, view, **moved, block=_with(grid.block, axis, block), phase=_with(grid.phase, axis, phase))


def _without_first(grid: Grid) -> Grid:
    """Return the grid of a tensor of one index along the first axis, without that axis."""
    values = {name: getattr(grid, name)[1:] for name in ("at", "shape", "block", "phase")}
    return _changed(grid, lambda entry: nth(entry, 0, entry.name), **values)


def _placed(entry: ScaledEntry, axis: int, ranges: Sequence[Range]) -> Iterator[Grid]:
    """Yield the grids of a tensor whose indices along `axis` fill these ranges of another's, one after the other."""
    end = 0
    for start, stop in ranges:
        yield from _cut_grids(entry, axis, (end, end + stop - start), start)
        end += stop - start


def _stacked(entries: Sequence[TensorEntry], name: str) -> ScaledEntry:
    """Return quantised tensors along a new first axis, each with its own scales. Raises MalformedError."""
    scaled = [entry for entry in entries if isinstance(entry, ScaledEntry)]
    forms = {(entry.zero, entry.dtype, *((grid.place, grid.zeros is None) for grid in entry.grids)) for entry in scaled}
    if len(forms) > 1 or len(scaled) < len(entries):
        raise MalformedError("can't be stacked: the parts are quantised in different ways, or only some of them are")
    grids = list[Grid]()
    for its in zip(*(entry.grids for entry in scaled), strict=True):
        first, zeros = its[0], [grid.zeros for grid in its if grid.zeros is not None]
        grids.append(
            Grid(
                at=(0, *first.at),
                shape=(len(its), *first.shape),
                scales=stored(stack([grid.scales for grid in its], first.scales.name)),
                block=(1, *first.block),
                phase=(0, *first.phase),
                zeros=stored(stack(zeros, zeros[0].name)) if zeros else None,
            )
        )
    return _scaled(scaled[0], stack([entry.codes for entry in scaled], name), grids)


def _transposed(grid: Grid) -> Grid:
    values = {name: getattr(grid, name)[::-1] for name in ("at", "shape", "block", "phase")}
    return _changed(grid, lambda entry: transpose(entry, entry.name), **values)
