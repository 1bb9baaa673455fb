"""Measure the disk: how fast the output's takes what is written, and how much of the inputs is in memory already.

No file is left behind, however it ends: what is written goes to a file without a name.
"""

from __future__ import annotations

import errno
import os
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from ..errors import WorkError
from ..plan.plan import Plan
from .output.destination import existing_parent

DISK_SECONDS = 0.3  # for reading from the disk, and for flushing to it
LOOKS = 64  # places in the inputs at which it is checked whether they are in the page cache
_SPARE = 256 << 20  # bytes of disk; where less is free, nothing is written
WRITTEN = 64 << 20  # bytes that the nameless file grows to, about


@contextmanager
def nameless_file(output: str, notes: list[str]) -> Iterator[IO[bytes] | None]:
    """Open a file on the output's file system that disappears when it is closed; yield None, with a note, if there can't
    be one."""
    folder = existing_parent(os.path.realpath(output))
    state = os.statvfs(folder)
    file = None
    try:
        if state.f_bavail * state.f_frsize > _SPARE:
            file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed below
    except OSError:
        file = None
    if file is None:
        notes.append(f"writing isn't counted: nothing can be written to {folder} at the moment")
        yield None
        return
    with file:
        yield file


def flush_rate(file: IO[bytes] | None) -> float | None:
    """Return the bytes per second that the output's disk takes; None if that isn't known."""
    if file is None:
        return None
    content, done = bytes(8 << 20), 0
    begun = time.perf_counter()
    try:
        os.fsync(file.fileno())
        if time.perf_counter() - begun > DISK_SECONDS:
            return None if not (size := os.fstat(file.fileno()).st_size) else size / (time.perf_counter() - begun)
        begun = time.perf_counter()
        while done < 2 * WRITTEN and time.perf_counter() - begun < DISK_SECONDS:
            done += os.pwrite(file.fileno(), content, done % WRITTEN)
            os.fsync(file.fileno())
    except OSError:
        return None
    return done / (time.perf_counter() - begun)


def page_cache(plan: Plan, places: random.Random) -> tuple[float | None, float | None]:
    """Return the share of the inputs that is in the page cache, and the bytes per second at which the disk gives the rest;
    None for what isn't known."""
    files = plan.files
    sizes = [os.path.getsize(file) for file in files]
    if not sum(sizes) or not hasattr(os, "RWF_NOWAIT"):
        return None, None
    found: list[bool] = []
    read, seconds = 0, 0.0
    for file in places.choices(files, sizes, k=LOOKS):
        stream = os.open(file, os.O_RDONLY)
        try:
            at = places.randrange(os.fstat(stream).st_size) // 4096 * 4096
            found.append(_is_cached(stream, at))
            if not found[-1] and seconds < DISK_SECONDS:
                begun = time.perf_counter()
                read += len(os.pread(stream, 4 << 20, at))
                seconds += time.perf_counter() - begun
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
                return None, None
            raise WorkError(f"{file}: can't be read ({error.strerror})") from None
        finally:
            os.close(stream)
    return sum(found) / len(found), read / seconds if read else None


def _is_cached(stream: int, at: int) -> bool:
    """Whether a page of a file can be read without waiting for a disk. Raises OSError if the file system can't tell."""
    try:
        return os.preadv(stream, [bytearray(1)], at, os.RWF_NOWAIT) == 1
    except BlockingIOError:
        return False
