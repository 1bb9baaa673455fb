"""Temporary files that hold what a worker computes of one tensor and can't keep in memory."""

from __future__ import annotations

from typing import Any

import numpy as np


class Scratch:
    """Memory that is used again from tensor to tensor, one buffer per purpose, each as large as was ever needed."""

    def __init__(self) -> None:
        self._buffers: dict[str, np.ndarray] = {}

    def array(self, purpose: str, size: int, dtype: Any) -> np.ndarray:
        """(size,) of dtype, contents undefined; overlaps what this purpose was given before."""
        nbytes = size * np.dtype(dtype).itemsize
        if purpose not in self._buffers or self._buffers[purpose].nbytes < nbytes:
            self._buffers[purpose] = np.empty(nbytes, np.uint8)
        return self._buffers[purpose][:nbytes].view(dtype)
