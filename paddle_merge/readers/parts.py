"""Tensors made of parts: whether the parts are the whole tensor, and the simplest way to say where they lie."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from ..dtypes import DType
from ..gather import boxes, row_major
from . import MAX_SIZE, Part, TensorEntry
from .pickles import MalformedError

MAX_PARTS = 4096  # of one tensor


def assemble(name: str, dtype: DType, shape: tuple[int, ...], parts: Sequence[Part]) -> TensorEntry:
    """The tensor that the parts (at least one) make up: boxes of it, or runs of its elements.

    Raises MalformedError if they leave anything out, overlap, or reach beyond it.
    """
    size, file, origin = math.prod(shape), parts[0].file, parts[0].origin
    parts = [part for part in parts if math.prod(part.shape)]
    problem = _uncovered(shape, parts)
    if problem:
        raise MalformedError(problem)
    runs = sorted((_as_run(part, shape) for part in parts), key=lambda part: part.at)
    if not runs:
        return TensorEntry(name, dtype, shape, file, 0, 0, origin=origin)
    first = runs[0]
    if len(runs) == 1 and first.at == (0,) and first.shape == (size,) and first.strides == (1,) and not first.text:
        return TensorEntry(name, dtype, shape, first.file, first.offset, size * dtype.itemsize, origin=first.origin)
    return TensorEntry(name, dtype, shape, first.file, first.offset, size * dtype.itemsize, tuple(runs))


def as_boxes(entry: TensorEntry) -> list[Part]:
    """The same tensor in boxes of as many dimensions as it has. Raises MalformedError if a part can't be cut into them."""
    strides = row_major(entry.shape)
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
                raise MalformedError("is in slices that can't be joined with others; save it again with protocol 4")
            offset = part.offset + skipped * entry.dtype.itemsize
            found.append(dataclasses.replace(part, offset=offset, at=corner, shape=shape, strides=strides))
    return found


def _uncovered(shape: tuple[int, ...], parts: Sequence[Part]) -> str:
    """What is wrong with parts as the whole of a tensor; else nothing."""
    if math.prod(filter(None, shape)) >= MAX_SIZE:
        return f"is {list(shape)}, larger than anything can hold"
    if len(parts) > MAX_PARTS:
        return f"is in {len(parts)} parts: more than can be checked"
    whole = shape
    if any(len(part.at) != len(shape) for part in parts):
        whole = (math.prod(shape),)
        if any(len(part.at) != 1 for part in parts):
            return "is in boxes and in runs at once, which can't be checked"
    for part in parts:
        if any(at + count > full for at, count, full in zip(part.at, part.shape, whole, strict=True)):
            return f"is {list(shape)}, but has a part {list(part.shape)} at {list(part.at)}"
    starts = np.array([part.at for part in parts], np.int64).reshape(len(parts), len(whole))
    stops = starts + np.array([part.shape for part in parts], np.int64).reshape(starts.shape)
    for number, one in enumerate(parts):
        both = (starts[number + 1 :] < stops[number]) & (stops[number + 1 :] > starts[number])
        if (overlapping := np.flatnonzero(both.all(axis=1))).size:
            return f"has parts that overlap, at {list(one.at)} and {list(parts[number + 1 + overlapping[0]].at)}"
    held = sum(math.prod(part.shape) for part in parts)
    return "" if held == math.prod(shape) else f"has {held} elements of {math.prod(shape)}: a part is missing"


def _as_run(part: Part, shape: tuple[int, ...]) -> Part:
    """The same part as a run of the tensor's elements, if it is one and lies together."""
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
