"""Look at the machine: how many cores and how much memory this process may use, within the limits of its cgroups."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator

ROOT = "/sys/fs/cgroup"
MEMBERSHIP = "/proc/self/cgroup"


def cores() -> int:
    """Return how many CPU cores this process may use: those that it may run on, and no more than a cgroup grants it."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder in _cgroups("cpu"):
        for name, other in (("cpu.max", ""), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
            words = [*_words(os.path.join(folder, name)), *(_words(os.path.join(folder, other)) if other else ())]
            with contextlib.suppress(ValueError, IndexError, ZeroDivisionError):  # "max" is no limit, nor is -1
                share = int(words[0]) / int(words[1])
                if share > 0:
                    found = min(found, max(1, math.ceil(share)))
    return found


def free_memory() -> int:
    """Return how many bytes of memory this process may still take: what is available, and no more than its cgroups leave."""
    found = [_available()]
    for folder in _cgroups("memory"):
        for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            with contextlib.suppress(ValueError, IndexError):
                taken = int(_words(os.path.join(folder, used))[0]) - _dropped(folder)
                found.append(int(_words(os.path.join(folder, limit))[0]) - taken)
    return max(0, min(found))


def _available() -> int:
    """Return how many bytes the system could give to programs, cached files included."""
    with contextlib.suppress(OSError, ValueError, IndexError), open("/proc/meminfo", encoding="ascii") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable:"))
    with contextlib.suppress(AttributeError, OSError, ValueError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 4 << 30  # not on Linux


def _dropped(folder: str) -> int:
    """Return how many bytes of cached files a cgroup is charged with, which the system drops when memory is short."""
    with contextlib.suppress(OSError, ValueError):
        with open(os.path.join(folder, "memory.stat"), encoding="ascii") as file:
            held = dict(line.split() for line in file)
        return int(held.get("inactive_file", held.get("total_inactive_file", 0)))
    return 0


def _cgroups(controller: str) -> Iterator[str]:
    """Yield the folders of the cgroups that limit this process: its own, and all above it."""
    with contextlib.suppress(OSError, ValueError):
        with open(MEMBERSHIP, encoding="utf-8") as file:
            lines = [line.rstrip("\n").split(":", 2) for line in file]
        for _, names, path in lines:
            if names and controller not in names.split(","):
                continue
            mounts = [os.path.join(ROOT, name) for name in (names, controller)] if names else [ROOT]
            for mount in dict.fromkeys(mounts):
                folder = path
                while True:
                    yield os.path.join(mount, folder.strip("/"))
                    if folder in ("/", ""):
                        break
                    folder = os.path.dirname(folder)


def _words(path: str) -> list[str]:
    with contextlib.suppress(OSError, UnicodeError), open(path, encoding="ascii") as file:
        return file.read().split()
    return []
