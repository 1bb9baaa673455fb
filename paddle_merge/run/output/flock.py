"""One merge at a time into a folder: a lock that the system drops with the last process that holds it. Workers hold it too,
so that what a killed merge leaves running can't write into the files of the next one.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import time

from ...errors import OutputError

log = logging.getLogger("paddle_merge")
ENDING_SECONDS = 2.0  # for the workers of a merge that was killed to notice that


class FolderLock:
    """On a folder. Take; drop, whatever happened."""

    def __init__(self, folder: str):
        self._folder = folder
        self.file: int | None = None  # for workers to inherit

    def take(self) -> None:
        """Raises OutputError while another merge holds it, OSError if the folder can't be opened."""
        self.file = os.open(self._folder, os.O_RDONLY)
        limit = time.monotonic() + ENDING_SECONDS
        while _held(self.file):
            if time.monotonic() > limit:
                self.drop()
                raise OutputError(refusal(self._folder))
            time.sleep(0.05)

    def drop(self) -> None:
        if self.file is not None:
            os.close(self.file)
            self.file = None


def is_held(folder: str) -> bool:
    """Whether a merge into the folder is alive. Touches nothing."""
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


def _held(file: int) -> bool:
    """Whether somebody else has it; else it is ours now. Raises OSError."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL):
            raise
        log.warning("this file system has no locks, so nothing stops a second merge into the same folder")
    return False
