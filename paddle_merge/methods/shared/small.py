"""Read a small tensor whole: where there are few elements, calling a loop takes longer than what it computes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ...backends.backend import Backend
    from .base import Tensor

SMALL = 1 << 14  # elements up to which a tensor is measured whole instead of block by block


def elements(tensor: Tensor, backend: Backend) -> np.ndarray:
    """Return the elements of all models, (models, size) in compute dtype, on the host. Reads the tensor once."""
    found = np.empty((tensor.models, tensor.size), backend.dtype)
    for start, x in tensor.deltas():
        if isinstance(x, np.ndarray):  # there may be many rows
            found[:, start : start + x.shape[1]] = x
        else:
            for row, its in zip(found, x, strict=True):
                block = backend.fetch(its)()
                row[start : start + len(block)] = block
    return found
