"""Read small matrices with low-rank changes together: what adapted.py does for each takes far longer than the arithmetic."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from ...backends.kernels import low_rank
from ...backends.np_backend import widen
from ...checkpoints.files import Files
from ...checkpoints.tensors import StoredEntry, TensorEntry
from .entry import AdaptedEntry, LowRank


def kind_of(entry: AdaptedEntry) -> object:
    """Return what is equal for tensors that can be read together; None for a tensor that can't be read with others."""
    if len(entry.changes) != 1 or not isinstance(entry.stored, StoredEntry):
        return None
    (change,) = entry.changes
    if not isinstance(change, LowRank) or change.left is None or change.middle is not None:
        return None
    if change.place or change.size != math.prod(entry.shape):  # of a stack of matrices
        return None
    return entry.stored.dtype, change.left.dtype, change.right.dtype, change.scale


def read_together(entries: Sequence[AdaptedEntry], files: Files, out: np.ndarray) -> None:
    """Fill `out`, of shape (n,), with all elements of tensors of one kind, one tensor behind the other. Raises WorkError."""
    changes = [change for entry in entries for change in entry.changes if isinstance(change, LowRank)]
    _widened([entry.stored for entry in entries], files, out)
    lefts = _matrices([change.left for change in changes if change.left is not None], files, changes[0].scale, out.dtype)
    rights = _matrices([change.right for change in changes], files, 1.0, out.dtype)
    at = 0
    for entry, left, right in zip(entries, lefts, rights, strict=True):
        low_rank.add_low_rank(out[at : (at := at + math.prod(entry.shape))], 0, left, right)


def _widened(entries: Sequence[TensorEntry], files: Files, out: np.ndarray) -> None:
    """Fill `out`, of shape (n,), float32 or float64, with all elements of stored tensors of one dtype."""
    raw = np.empty(out.size, entries[0].dtype.raw)
    files.read_all(entries, raw)
    widen(raw, entries[0].dtype, out)


def _matrices(entries: Sequence[TensorEntry], files: Files, scale: float, dtype: np.dtype) -> Iterator[np.ndarray]:
    """Yield factors times a scale, which is rounded once."""
    wide, at = np.empty(sum([math.prod(entry.shape) for entry in entries])), 0
    _widened(entries, files, wide)
    numbers = (wide * scale).astype(dtype)
    for entry in entries:
        found = numbers[at : (at := at + math.prod(entry.shape))]
        yield found.reshape(entry.shape[0] if len(entry.shape) > 1 else 1, -1)
