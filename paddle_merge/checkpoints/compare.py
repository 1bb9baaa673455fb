"""Compare the stored values of tensors, block by block.

Planning needs this in a few cases, before it leaves out a tensor (a tied lm_head) or copies one for all inputs; otherwise
it reads headers only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .files import Files
from .scaled import ScaledEntry
from .tensors import StoredEntry, TensorEntry

STEP = 1 << 20  # bytes that are read at a time


def differing(entries: Sequence[TensorEntry]) -> list[TensorEntry]:
    """Return those of the tensors, all of one shape and dtype, whose bytes differ from the first's. Raises WorkError."""
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
            if not others:
                break
    finally:
        files.close()
    return found


def equal(one: TensorEntry, other: TensorEntry) -> bool:
    """Return whether two tensors are known to be equal, byte for byte; False for tensors that are made of others, unless it
    is of codes and scales.

    Raises WorkError if they can't be read.
    """
    if one.nameless == other.nameless:  # stored at the same place, or made of the same
        return True
    if isinstance(one, ScaledEntry) and isinstance(other, ScaledEntry):
        alike = one.zero == other.zero and [grid.place for grid in one.grids] == [grid.place for grid in other.grids]
        pairs = zip(one.made_of, other.made_of, strict=False)
        return alike and len(one.made_of) == len(other.made_of) and all(equal(*pair) for pair in pairs)
    stored = isinstance(one, StoredEntry) and isinstance(other, StoredEntry)
    return stored and (one.shape, one.dtype) == (other.shape, other.dtype) and not differing([one, other])


def is_zero(entry: TensorEntry) -> bool:
    """Return whether every element is +0.0 (all bytes zero). Raises WorkError if the tensor can't be read."""
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
