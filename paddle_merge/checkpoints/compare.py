"""The few looks that a plan takes at values, block by block: before it leaves a tensor out, or copies one for all."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .files import Files
from .tensors import StoredEntry, TensorEntry

STEP = 1 << 20  # bytes at a time


def differing(entries: Sequence[TensorEntry]) -> list[TensorEntry]:
    """Which of these tensors, of one shape and dtype, don't hold the same bytes as the first. Raises WorkError."""
    first, *others = entries
    files, size, step = Files(), math.prod(first.shape), STEP // first.dtype.itemsize
    blocks = [np.empty(min(step, size) * first.dtype.itemsize, np.uint8) for _ in range(2)]
    found: list[TensorEntry] = []
    try:
        for start in range(0, size, step):
            one, two = (block[: min(step, size - start) * first.dtype.itemsize] for block in blocks)
            files.read(first, start, one)
            for entry in others:
                files.read(entry, start, two)
                if (one != two).any():
                    found.append(entry)
            others = [entry for entry in others if entry not in found]
    finally:
        files.close()
    return found


def equal(one: TensorEntry, other: TensorEntry) -> bool:
    """Whether two tensors are surely the same to the byte. Raises WorkError."""
    if one.nameless == other.nameless:  # the very same bytes
        return True
    stored = isinstance(one, StoredEntry) and isinstance(other, StoredEntry)
    return stored and (one.shape, one.dtype) == (other.shape, other.dtype) and not differing([one, other])


def is_zero(entry: TensorEntry) -> bool:
    """Whether every element is (plus) zero. Raises WorkError."""
    files, size, step = Files(), math.prod(entry.shape), STEP // entry.dtype.itemsize
    block = np.empty(min(step, size) * entry.dtype.itemsize, np.uint8)
    try:
        for start in range(0, size, step):
            part = block[: min(step, size - start) * entry.dtype.itemsize]
            files.read(entry, start, part)
            if part.any():
                return False
    finally:
        files.close()
    return True
