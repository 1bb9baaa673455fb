"""Allow one merge at a time into a folder, by a lock that the system releases when the last process that holds it ends.

Workers hold the lock, too, so that a worker that outlives a killed merge can't write into the files of the next one.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import time

from ...errors import OutputError

log = logging.getLogger("paddle_merge")
ENDING_SECONDS = 2.0  # for the workers of a killed merge to notice that and end


class FolderLock:
    """A lock on a folder: call take first, and drop in any case."""

    def __init__(self, folder: str):
        self._folder = folder
        self.file: int | None = None  # for workers to inherit

    def take(self) -> None:
        """Take the lock. Raises OutputError if another merge holds it, OSError if the folder can't be opened."""
        self.file = os.open(self._folder, os.O_RDONLY)
        limit = time.monotonic() + ENDING_SECONDS
        while taken(self.file):
            if time.monotonic() > limit:
                self.drop()
                raise OutputError(refusal(self._folder))
            time.sleep(0.05)

    def drop(self) -> None:
        if self.file is not None:
            os.close(self.file)
            self.file = None


def is_held(folder: str) -> bool:
    """Return whether a merge into the folder is running."""
    lock = FolderLock(folder)
    try:
        lock.take()
    except OutputError:
        return True
    except OSError:  # whoever wants to write there will hear of it
        return False
    lock.drop()
    return False


def refusal(folder: str) -> str:
    return f"--output_path {folder}: another merge is being written there"


def taken(file: int) -> bool:
    """Return whether another process holds the lock on an open file; if not, this one does, until it closes it.

    Where there are no locks, it warns and returns False. Raises OSError.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL):
            raise
        log.warning("this file system has no locks, so nothing stops a second run into the same folder")
    return False
