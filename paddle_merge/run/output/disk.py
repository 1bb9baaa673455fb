"""Write bytes at offsets of files, and make sure that they have reached the disk.

Before: run/worker.py merges a piece. After: writer.py, when all pieces are written, gives the files their final names.
"""

from __future__ import annotations

import errno
import json
import os
from typing import Any

import numpy as np

from ...checkpoints.files import OpenFiles

# What fsync fails with where a file system can't sync folders.
_NOT_FOR_FOLDERS = (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.ENOSYS)


class ShardFiles(OpenFiles):
    """Writes tensors into files that exist already."""

    def __init__(self) -> None:
        super().__init__(os.O_WRONLY)

    def write(self, path: str, offset: int, raw: np.ndarray) -> None:
        """Write all of raw, which is C-contiguous, at byte `offset` of an existing file. Raises OSError."""
        file, done, nbytes = self._file(path), 0, raw.nbytes
        while done < nbytes:
            done += os.pwrite(file, np.frombuffer(raw, np.uint8)[done:].data if done else raw.data, offset + done)

    def start_writeback(self, path: str, offset: int, length: int) -> None:
        """Let the system start to write this range to the disk, so that fsync has less to wait for.

        On Linux POSIX_FADV_DONTNEED starts writeback of dirty pages, and drops only pages that are already on the disk.
        """
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file(path), offset, length, os.POSIX_FADV_DONTNEED)


def fsync(path: str) -> None:
    """Wait until the content of a file, or of a folder (its names), is on the disk. Raises OSError.

    Some network file systems can't do that for folders, as databases know that run on them.
    """
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in _NOT_FOR_FOLDERS or not os.path.isdir(path):
            raise
    finally:
        os.close(file)


def remedy(error: OSError, path: str) -> str:
    """Return the end of a sentence on what to do about a write to `path` that failed; "" if no remedy is known."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return ""
    return f": free some space on the disk of {os.path.dirname(os.path.abspath(path))}, then merge again"


def json_bytes(content: Any) -> bytes:
    """Return the content of a JSON file, indented by two spaces."""
    return (json.dumps(content, indent=2) + "\n").encode()
