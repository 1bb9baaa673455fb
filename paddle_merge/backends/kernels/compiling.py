"""Compile loops with Numba, each once on a machine: processes that need the same loop wait for the first to compile it."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import njit
from numba.core.caching import FunctionCache
from numba.core.compiler_lock import global_compiler_lock

PATIENCE = 30.0  # seconds to wait for another process, which may have been stopped; then the loop is compiled here, too


def _files_stamp() -> tuple[tuple[float, int], ...]:
    """Return when each file of this package was changed last, and its size."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return tuple((found.st_mtime, found.st_size) for found in (path.stat() for path in files))


_STAMP = _files_stamp()


def jit(loop: Callable[..., Any]) -> Any:
    """Compile a loop with Numba.

    The machine code is kept beside the source or in the user's cache folder. Where neither can be written (a read-only
    container), it is compiled in every process, which takes a few seconds.

    Numba keeps the code until the file of the loop changes. Loops call loops of other files, so here it is kept until any
    file of this package changes.
    """
    compiled: Any = njit(nogil=True, error_model="numpy")(loop)
    try:
        cache = _SharedCache(loop)
    except RuntimeError:
        return compiled
    cache._cache_file._source_stamp = _STAMP
    compiled._cache = cache
    compile_one = compiled.compile

    @functools.wraps(compile_one)
    def compile_here(signature: Any) -> Any:
        with global_compiler_lock, _LOCK:  # of Numba, among this process's threads
            return compile_one(signature)

    compiled.compile = compile_here
    return compiled


class _Lock:
    """Lets one process at a time compile. The context is entered for each loop; `take` takes the lock until it is left.

    Loops that are compiled for the sake of another are compiled within its context.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._file: int | None = None
        self._patience = PATIENCE

    def __enter__(self) -> None:
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if self._depth == 0 and self._file is not None:
            os.close(self._file)
            self._file = None

    def take(self, folder: str) -> None:
        """Wait for the lock, for PATIENCE once at most. folder: of the compiled loops; where it can't have locks, don't."""
        if self._file is not None:
            return
        with contextlib.suppress(OSError):
            self._file = os.open(os.path.join(folder, "compiling.lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            limit = time.monotonic() + self._patience
            while time.monotonic() < limit:
                try:
                    return fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    time.sleep(0.01)
            self._patience = 0.0


_LOCK = _Lock()


class _SharedCache(FunctionCache):
    """Numba's cache of a compiled loop. Two processes that write to it at once may mix up the code of two signatures."""

    def load_overload(self, signature: Any, target: Any) -> Any:
        """Return the loop compiled for a signature; None: it is to be compiled, which no other process does now."""
        found = super().load_overload(signature, target)
        if found is None:
            with contextlib.suppress(OSError):
                self._impl.locator.ensure_cache_path()
            _LOCK.take(self.cache_path)
            found = super().load_overload(signature, target)
        return found
