"""Keep arrays to be used again, so that a worker doesn't allocate memory for every block."""

from __future__ import annotations

from typing import Any

import numpy as np


class Scratch:
    """Buffers that are used again from tensor to tensor, one for each purpose, as large as was ever needed."""

    def __init__(self) -> None:
        self._buffers: dict[str, np.ndarray] = {}
        self._last: dict[str, tuple[int, Any, np.ndarray]] = {}  # size, dtype and array, which many tensors ask for again

    def array(self, purpose: str, size: int, dtype: Any) -> np.ndarray:
        """Return an array (size,) of dtype. Its contents are undefined; its memory is that of this purpose's last array."""
        last = self._last.get(purpose)
        if last is not None and last[0] == size and last[1] == dtype:
            return last[2]
        nbytes = size * np.dtype(dtype).itemsize
        if purpose not in self._buffers or self._buffers[purpose].nbytes < nbytes:
            self._buffers[purpose] = np.empty(nbytes, np.uint8)
        array: np.ndarray = self._buffers[purpose][:nbytes].view(dtype)
        self._last[purpose] = size, dtype, array
        return array
