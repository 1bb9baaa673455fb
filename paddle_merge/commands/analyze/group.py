"""Read small tensors of the same size together, to be measured as the rows of one (run/alike.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...backends.np_backend import NumpyBackend
from ...backends.scratch import Scratch
from ...checkpoints.files import Files
from ...checkpoints.tensors import StoredEntry
from ...methods.shared.small import SMALL
from ...run.alike import Alike, Rows
from .tensors import Compared

MOST = 64  # tensors of a group, for which what a group takes hardly counts any more


def groups(compared: Sequence[Compared]) -> list[list[int]]:
    """Return the numbers of the tensors that are measured together, ascending; most large ones are alone."""
    found: list[list[int]] = []
    open_groups: dict[Any, list[int]] = {}
    for number, tensor in enumerate(compared):
        size, entries = tensor.size, tensor.entries
        if not 0 < size <= SMALL // 2 or not all(type(one) is StoredEntry and one.dtype.itemsize < 8 for one in entries):
            found.append([number])
            continue
        key = size, tuple(tensor.sources), tuple(tensor.dtypes)
        group = open_groups.get(key)
        if group is None or len(group) >= min(MOST, SMALL // size):
            group = open_groups[key] = []
            found.append(group)
        group.append(number)
    return found


def load_group(
    tensors: Sequence[Compared], backend: NumpyBackend, files: Files, scratch: Scratch, progress: Callable[[int], None]
) -> tuple[Rows, np.ndarray] | None:
    """Read tensors that `groups` put together; return them, and their base (tensors * size,). Raises WorkError.

    None: some tensor has a NaN or Inf. backend: of the dtype that they are merged in.
    """
    dtypes, size = tensors[0].dtypes, tensors[0].size
    raws = [scratch.array(f"raw {k}", len(tensors) * size, dtype.raw) for k, dtype in enumerate(dtypes)]
    for place, tensor in enumerate(tensors):
        for entry, raw in zip(tensor.entries, raws, strict=True):
            files.read(entry, 0, raw[place * size : (place + 1) * size])
        progress(tensor.nbytes)
    x, base, bad = backend.load(raws, dtypes, True)
    if any(bad):
        return None
    return Rows(Alike([tensor.name for tensor in tensors], (size,)), x.reshape(-1, size)), base
