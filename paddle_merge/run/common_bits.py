"""Keep NaN and Inf that all inputs have in common, such as the Inf in a mask that a model stores among its weights.

Subtracting the base from it would give NaN, and so would norms and angles. Such elements count as zeros while methods
measure and merge; then they get back what they were. They are no sign of damage, either.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..dtypes import DType


class CommonBits:
    """The elements of a block that are the same NaN or Inf in every input.

    raws: the stored elements (n,) of each input, NumPy arrays or Paddle tensors. dtypes: of these. compute: the dtype that
    they are merged in, "float32" or "float64".
    """

    def __init__(self, raws: Sequence[Any], dtypes: Sequence[DType], compute: str):
        from ..backends.np_backend import NumpyBackend  # planning does without

        self._backend = NumpyBackend(compute)
        raws = [
            raw if isinstance(raw, np.ndarray) else raw.numpy().view(dtype.raw)
            for raw, dtype in zip(raws, dtypes, strict=True)
        ]
        self._first, self._dtype = raws[0], dtypes[0]
        rows = [self._widened(raw, dtype) for raw, dtype in zip(raws, dtypes, strict=True)]
        bits = [row.view(f"u{row.itemsize}") for row in rows]
        self._wide, self._found = rows[0], ~np.isfinite(rows[0])
        for one in bits[1:]:
            self._found &= one == bits[0]
        self.without = [np.where(self._found, raw.dtype.type(0), raw) for raw in raws]  # the inputs with zeros instead

    def restored(self, stored: np.ndarray, dtype: DType) -> tuple[np.ndarray, bool]:
        """Return the merged elements (n,) of storage dtype `dtype` with these in their places; and whether there are further
        NaN or Inf among them."""
        own = self._first if dtype == self._dtype else self._backend.store(self._wide, dtype)[0]
        further = bool((~np.isfinite(self._widened(stored, dtype)) & ~self._found).any())
        return np.where(self._found, own.view(stored.dtype), stored), further

    def _widened(self, raw: np.ndarray, dtype: DType) -> np.ndarray:
        with self._backend.at_work():
            rows, _, _ = self._backend.load([raw], [dtype], False)
        return np.array(rows[0])
