"""Files read and written at offsets, and memory that is used again."""

from __future__ import annotations

import os
import resource
from collections import OrderedDict
from typing import Any

import numpy as np

from .errors import WorkError
from .readers import TensorEntry

OPEN_FILES = 256


class Files:
    """Files by path, opened when first used and kept open, the least used closed when there are many."""

    def __init__(self, flags: int = os.O_RDONLY) -> None:
        self._flags = flags
        self._limit = max(8, min(OPEN_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))
        self._open: OrderedDict[str, int] = OrderedDict()

    def read(self, entry: TensorEntry, start: int, out: np.ndarray) -> None:
        """Fill out, C-contiguous in the entry's raw dtype, with the elements from index `start` on. Raises WorkError."""
        offset = entry.offset + start * entry.dtype.itemsize
        view = out.view(np.uint8).data
        try:
            file = self._file(entry.file)
            while view:
                count = os.preadv(file, [view], offset)
                if count == 0:
                    raise WorkError(f"{entry.file}: ends before tensor {entry.name!r} does; was it changed while merging?")
                view, offset = view[count:], offset + count
        except OSError as error:
            raise WorkError(f"{entry.file}: can't read tensor {entry.name!r} ({error.strerror})") from None

    def write(self, path: str, offset: int, raw: np.ndarray) -> None:
        """Write all of raw, C-contiguous, at `offset` of the existing file. Raises OSError."""
        file, view = self._file(path), raw.view(np.uint8).data
        while view:
            count = os.pwrite(file, view, offset)
            view, offset = view[count:], offset + count

    def start_writeback(self, path: str, offset: int, length: int) -> None:
        """Let the disk begin while the next piece is computed, so that little is left for fsync to wait for.

        On Linux DONTNEED starts writing dirty pages back, and drops only those that were already on disk.
        """
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file(path), offset, length, os.POSIX_FADV_DONTNEED)

    def _file(self, path: str) -> int:
        if path in self._open:
            self._open.move_to_end(path)
        else:
            if len(self._open) >= self._limit:
                os.close(self._open.popitem(last=False)[1])
            self._open[path] = os.open(path, self._flags)
        return self._open[path]

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])


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
