"""Compile loops with Numba, each once on a machine: processes that need the same loop wait for the first to compile it."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import glob
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import njit
from numba.core.caching import FunctionCache, IndexDataCacheFile
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
        compiled._cache = _SharedCache(loop)
    except RuntimeError:
        return compiled
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
            while True:
                try:
                    return fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if time.monotonic() > limit:
                        self._patience = 0.0
                        return
                    time.sleep(0.01)


_LOCK = _Lock()


class _CacheFile(IndexDataCacheFile):
    """The files of a loop's machine code, one for each signature, and their index, of which processes may die at any time.

    Numba writes the index first, and gives names of older files to new ones. So an index could name a file that has the code
    of an older version of the loop, or of another signature.
    """

    def save(self, key: Any, data: Any) -> None:
        overloads = self._load_index()
        overloads[key] = self._data_name(uuid.uuid4().int)
        self._save_data(overloads[key], data)
        self._save_index(overloads)
        for path in Path(self._cache_path).glob(glob.escape(self._index_name.removesuffix("nbi")) + "*.nbc"):
            if path.name not in overloads.values():  # of an older version
                with contextlib.suppress(OSError):  # another user's
                    path.unlink()


class _SharedCache(FunctionCache):
    """Numba's cache of a compiled loop, for processes that may compile it at the same time."""

    def __init__(self, loop: Callable[..., Any]):
        super().__init__(loop)
        self._cache_file = _CacheFile(self._cache_path, self._impl.filename_base, _STAMP)

    def load_overload(self, signature: Any, target: Any) -> Any:
        """Return the loop compiled for a signature; None: it is to be compiled, which no other process does now."""
        found = super().load_overload(signature, target)
        if found is None:
            with contextlib.suppress(OSError):
                self._impl.locator.ensure_cache_path()
            _LOCK.take(self.cache_path)
            found = super().load_overload(signature, target)
        return found

    def save_overload(self, signature: Any, data: Any) -> None:
        """Keep the code of a loop, if the disk has room for it."""
        with contextlib.suppress(OSError):
            super().save_overload(signature, data)
