"""Find the processes of a merge that runs, and measure their memory."""

from __future__ import annotations

import contextlib

import psutil


def workers_of(pid: int) -> list[psutil.Process]:
    """Return the workers of a merge: forks of the one process that the merge starts. pid: of the merge."""
    return [worker for server in psutil.Process(pid).children() for worker in server.children()]


def memory_of(pid: int) -> int:
    """Return the bytes that a process and its descendants hold together; pages that several share count once."""
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):  # one that has just ended
        root = psutil.Process(pid)
        total = sum(one.memory_full_info().pss for one in [root, *root.children(recursive=True)])
    return total
