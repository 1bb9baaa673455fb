"""Keep the machine code of loops in files, which processes of one machine share.

The files are beside the source (__pycache__), or, where that can't be written, in the user's cache folder; the variable
NUMBA_CACHE_DIR names another one. Where none can be written (a read-only container), every process compiles for itself,
which takes a few seconds. Code is kept for one version of this package's files, of Python, NumPy, Numba and LLVM, and for
one kind of processor. Loops belong into this package: a change of other files isn't noticed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import glob
import hashlib
import importlib.util
import json
import os
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
_patience = 30.0  # seconds to wait for other processes, which may have been stopped; then loops are compiled here, too
_FOLDER = "NUMBA_CACHE_DIR"
_SUFFIX = ".code"


@dataclasses.dataclass(frozen=True)
class Code:
    """The machine code of a loop for arguments of certain types: an object file, and what is needed of it.

    wrapper, environment: symbols of the function that Python calls, and of the variable for its environment. external: the
    symbols that must be there when it is linked.
    """

    wrapper: str
    environment: str
    external: list[str]
    object: bytes

    def to_bytes(self, file: str) -> bytes:
        """Return the content of a file of this name, which starts with a checksum of all the rest and of the name: run with
        arguments of other types, code would write anywhere."""
        fields = dataclasses.asdict(self) | {"object": ""}
        content = json.dumps(fields).encode() + b"\n" + self.object
        return b"%08x" % zlib.crc32(file.encode() + content) + content

    @classmethod
    def of(cls, content: bytes, file: str) -> Code:
        """Return what to_bytes gave. Raises ValueError if it is damaged, or was written to a file of another name."""
        if content[:8] != b"%08x" % zlib.crc32(file.encode() + content[8:]):
            raise ValueError("damaged")
        head, _, code = content[8:].partition(b"\n")
        return cls(**{**json.loads(head), "object": code})


def find(name: str, types: str) -> Code | None:
    """Return the code of a loop for arguments of these types; None: it isn't kept."""
    for folder in _folders():
        with contextlib.suppress(OSError, ValueError):
            file = _file_name(name, types)
            return Code.of(Path(folder, file).read_bytes(), file)
    return None


def keep(name: str, types: str, code: Code) -> None:
    """Keep the code of a loop, where there is room, and drop that of older versions of it."""
    if (folder := _writable()) is None:
        return
    path = Path(folder, _file_name(name, types))
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        partial.write_bytes(code.to_bytes(path.name))
        partial.replace(path)
    except OSError:  # the disk is full
        with contextlib.suppress(OSError):
            partial.unlink()
        return
    older = path.name.removesuffix(f"{source_stamp()}{_SUFFIX}")
    for found in Path(folder).glob(f"{glob.escape(older)}*"):
        if found != path:
            with contextlib.suppress(OSError):  # another user's
                found.unlink()


@contextlib.contextmanager
def compiling(name: str) -> Iterator[None]:
    """Wait until no other process compiles this loop, for `_patience` once at most, and keep the others waiting."""
    global _patience
    file, folder = None, _writable()
    if folder is not None:
        with contextlib.suppress(OSError):
            file = os.open(os.path.join(folder, f"{name}.lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            limit = time.monotonic() + _patience
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > limit:
                        _patience = 0.0
                        break
                    time.sleep(0.01)
    try:
        yield
    finally:
        if file is not None:
            os.close(file)


def _folders() -> list[str]:
    """Return the folders in which code may be kept, the first of which that can be written is used.

    There are none if the source isn't there (a zip file, an application without it): nothing would tell versions apart.
    """
    if not (HERE / "kept_code.py").exists():
        return []
    if chosen := os.environ.get(_FOLDER):
        return [chosen]
    users = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    of_user = [os.path.join(users, "paddle_merge")] if os.path.isabs(users) else []  # not, if the user has no home
    return [str(HERE / "__pycache__"), *of_user]


def _writable() -> str | None:
    """Return the folder to keep code in, which it makes; None: there is none."""
    for folder in _folders():
        with contextlib.suppress(OSError):
            os.makedirs(folder, exist_ok=True)
            if os.access(folder, os.W_OK | os.X_OK):
                return folder
    return None


def _file_name(name: str, types: str) -> str:
    return f"{name}-{_digest(str(HERE), _machine(), types)}-{source_stamp()}{_SUFFIX}"


@functools.cache
def source_stamp() -> str:
    """Return what tells versions of this package's files apart: loops call loops of other files."""
    return _digest(*(path.read_text() for path in sorted(HERE.glob("*.py"))))


@functools.cache
def _machine() -> str:
    """Return what the code for a source depends on beside it: the versions of all who make it, and the processor."""
    import llvmlite
    from llvmlite import binding

    found = importlib.util.find_spec("numba")
    folder = found.submodule_search_locations[0] if found and found.submodule_search_locations else ""
    numba = Path(folder, "_version.py").read_text() if folder else ""
    settings = sorted(
        f"{name}={value}" for name, value in os.environ.items() if name.startswith("NUMBA_") and name != _FOLDER
    )
    processor = f"{binding.get_host_cpu_name()} {binding.get_host_cpu_features().flatten()}"
    return _digest(sys.version, np.__version__, llvmlite.__version__, folder, numba, processor, *settings)


def _digest(*words: str) -> str:
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:16]
