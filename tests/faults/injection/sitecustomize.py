"""Inject faults into the processes of a merge.

Python imports this module at its start if its folder is on PYTHONPATH, in the parent process and in the workers. The
environment variable CHAOS says, in JSON, which fault happens, where and when:

    folder   the folder in which all processes count and log calls
    scope    only calls on files below this folder count
    call     the call to count: pwrite, preadv, fsync, replace, unlink, or open (for writing)
    at       the number of the call in which the fault happens, from 1; 0: never
    who      whose calls count: parent, worker, or any
    fault    a name in FAULTS, and its arguments
    shadow   True: keep in the folder what a power cut would leave, for tests/support/power.py
"""

from __future__ import annotations

import atexit
import builtins
import contextlib
import json
import os
import resource
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

WORKER = any("paddle_merge.run.fork_server" in word for word in sys.orig_argv)  # or the process that forks them
ROOT = os.getppid() if WORKER else os.getpid()
REAL = {name: getattr(os, name) for name in ("pwrite", "preadv", "fsync", "replace", "unlink", "open", "mkdir", "rename")}
REAL_OPEN = builtins.open
LOCK = threading.RLock()


def family() -> list[int]:
    """Return the process ids of the merge: its parent process, the one that forks workers, and the workers."""
    found = [ROOT]
    for pid in found:
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{pid}/task"):
                with REAL_OPEN(f"/proc/{pid}/task/{thread}/children") as file:
                    found += map(int, file.read().split())
    return found


class Chaos:
    """The fault that CHAOS describes, with the counts of calls."""

    def __init__(self, said: dict[str, Any]):
        self.folder, self.scope, self.call, self.at = said["folder"], said["scope"], said["call"], said["at"]
        self.who, self.fault, self.shadow = said["who"], said["fault"], said.get("shadow", False)
        self.after = False  # whether a lasting fault has happened

    def count(self, name: str, path: str) -> bool:
        """Count a call; return whether the fault is due in it."""
        if not path.startswith(self.scope) or self.who not in ("any", "worker" if WORKER else "parent"):
            return False
        with LOCK:
            file = REAL["open"](f"{self.folder}/count-{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                os.write(file, b".")
                return name == self.call and os.lseek(file, 0, os.SEEK_CUR) == self.at
            finally:
                os.close(file)

    def happen(self, name: str, path: str) -> None:
        """Count a call, and cause the fault if it is due. May not return."""
        hit = self.count(name, path)
        if hit:
            with REAL_OPEN(f"{self.folder}/fired", "w") as file:
                file.write(f"{name} {path}")
        word, *needs = self.fault
        if hit and word in FAULTS:
            FAULTS[word](*needs)
        elif word in ("errno", "errno from here on") and (hit or self.after) and name == self.call:
            self.after = word != "errno"
            raise OSError(needs[0], os.strerror(needs[0]), path)


def _signal(number: int, whom: str) -> None:
    """Send a signal. whom: self, parent, worker (one of them), all."""
    pids = family()
    if whom == "self":
        pids = [os.getpid()]
    elif whom == "parent":
        pids = pids[:1]
    elif whom == "worker":
        pids = pids[1:][-1:]
    for pid in sorted(pids, key=lambda pid: pid == os.getpid()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _memory_error() -> None:
    raise MemoryError


def _limit_memory(spare: int) -> None:
    """Limit the process's address space to `spare` bytes more than it uses now."""
    with REAL_OPEN("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + spare, size + spare))


def _fill(filler: str, spare: int) -> None:
    """Fill the disk with a file, up to the last `spare` bytes."""
    state = os.statvfs(os.path.dirname(filler))
    file = REAL["open"](filler, os.O_WRONLY | os.O_CREAT, 0o600)
    with contextlib.suppress(OSError):
        os.posix_fallocate(file, 0, max(1, state.f_bavail * state.f_frsize - spare))
    os.close(file)


def _truncate(path: str, size: int) -> None:
    os.truncate(path, size)


def _replace(path: str, other: str) -> None:
    REAL["replace"](other, path)


def _rewrite(path: str, other: str) -> None:
    """Replace the content of a file in place, as `cp` does."""
    shutil.copyfile(other, path)


FAULTS: dict[str, Callable[..., None]] = {
    "signal": _signal,
    "exit": os._exit,
    "memory error": _memory_error,
    "little memory": _limit_memory,
    "fill": _fill,
    "truncate": _truncate,
    "unlink": REAL["unlink"],
    "replace": _replace,
    "rewrite": _rewrite,
}


def path_of(file: int | str) -> str:
    return os.readlink(f"/proc/self/fd/{file}") if isinstance(file, int) else os.path.abspath(file)


def note(chaos: Chaos, *words: Any) -> None:
    with REAL_OPEN(f"{chaos.folder}/log", "a") as file:
        file.write(json.dumps(words) + "\n")


def keep(chaos: Chaos, path: str) -> None:
    """Keep an inode that loses its name: a power cut may give the name back, so it must not be reused."""
    grave = f"{chaos.folder}/inodes/{os.lstat(path).st_ino}"
    with contextlib.suppress(FileExistsError):
        os.link(path, grave)


def install(chaos: Chaos) -> None:
    def some(name: str, view: Any) -> Any:
        """Return the view, or for the fault "short", sometimes only its first part."""
        if chaos.fault[0] == "short" and name == chaos.call and len(view) > 1 and os.urandom(1)[0] < 128:
            return memoryview(view)[: 1 + int.from_bytes(os.urandom(4), "big") % (len(view) - 1)]
        return view

    def pwrite(file: int, view: Any, offset: int) -> int:
        chaos.happen("pwrite", path_of(file))
        return int(REAL["pwrite"](file, some("pwrite", view), offset))

    def preadv(file: int, views: Any, offset: int) -> int:
        chaos.happen("preadv", path_of(file))
        return int(REAL["preadv"](file, [some("preadv", views[0])], offset))

    def fsync(file: int) -> None:
        path = path_of(file)
        chaos.happen("fsync", path)
        if not chaos.shadow or not path.startswith(chaos.scope):
            REAL["fsync"](file)
        elif os.path.isdir(path):
            with LOCK:
                note(chaos, "sync", path)
        else:  # what was there before the call is safe after it
            copy = f"{chaos.folder}/safe/{os.fstat(file).st_ino}"
            shutil.copyfile(f"/proc/self/fd/{file}", f"{copy}.{threading.get_ident()}")
            REAL["replace"](f"{copy}.{threading.get_ident()}", copy)

    def replace(source: str, target: str) -> None:
        chaos.happen("replace", path_of(source))
        inside = chaos.shadow and path_of(source).startswith(chaos.scope)
        if inside:
            keep(chaos, source)
            if os.path.lexists(target):
                keep(chaos, target)
        REAL["replace"](source, target)
        if inside:
            note(chaos, "replace", path_of(source), path_of(target), os.lstat(target).st_ino)

    def unlink(path: str) -> None:
        chaos.happen("unlink", path_of(path))
        inside = chaos.shadow and path_of(path).startswith(chaos.scope)
        if inside and os.path.lexists(path):
            keep(chaos, path)
        REAL["unlink"](path)
        if inside:
            note(chaos, "unlink", path_of(path))

    def mkdir(path: str, *more: Any) -> None:
        REAL["mkdir"](path, *more)
        if chaos.shadow and path_of(path).startswith(chaos.scope):
            note(chaos, "mkdir", path_of(path))

    def opened(file: Any, mode: str = "r", *more: Any, **options: Any) -> Any:
        writes = isinstance(file, str) and set(mode) & set("wxa+")
        new = writes and not os.path.lexists(file)
        if writes:
            chaos.happen("open", path_of(file))
        result = REAL_OPEN(file, mode, *more, **options)
        if new and chaos.shadow and path_of(file).startswith(chaos.scope):
            keep(chaos, file)
            note(chaos, "create", path_of(file), os.lstat(file).st_ino)
        return result

    os.pwrite, os.preadv, os.fsync, os.unlink, os.mkdir = pwrite, preadv, fsync, unlink, mkdir  # type: ignore[assignment]
    os.replace = os.rename = replace  # type: ignore[assignment]
    builtins.open = opened
    if chaos.fault[0] == "short":  # and calls that signals interrupt
        signal.signal(signal.SIGALRM, lambda *_: None)
        signal.setitimer(signal.ITIMER_REAL, 0.003, 0.003)
        atexit.register(signal.setitimer, signal.ITIMER_REAL, 0)


if "CHAOS" in os.environ:
    install(Chaos(json.loads(os.environ["CHAOS"])))
