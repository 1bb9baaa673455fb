"""Find the processes of a merge that runs, and measure their memory."""

from __future__ import annotations

import contextlib

import psutil


def workers_of(pid: int) -> list[psutil.Process]:
    """Return the workers of a merge: forks of the one process that the merge starts. pid: of the merge."""
    return [worker for server in psutil.Process(pid).children() for worker in server.children()]


def memory_of(pid: int) -> int:
    """Return the bytes that a process and its descendants hold together; pages that several share count once."""
    total, family = 0, list[psutil.Process]()
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    for one in family:
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
            total += one.memory_full_info().pss
    return total
