"""The output folder. Shards are created at full size under a `.partial` name, so that workers can write anywhere in them;
they get their final names when all is written, the index (or the single file) and merge_config.json last. A folder that
looks finished is finished.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import fnmatch
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from .errors import OutputError
from .files import fsync
from .frames.formats import FORMATS, index_name, is_weights
from .journal import is_journal, name_of
from .plan import Shard
from .sidecars import ADAPTERS, CARD, COPIED, LOCK, RECORD, WEIGHTS

log = logging.getLogger("paddle_merge")
PARTIAL = ".partial"  # not whole yet
REPLACED = ".replaced"  # an earlier merge's, until the new one stands
SEEN_SECONDS = 60.0
MARGIN = 16 << 20  # bytes kept free for config, tokenizer and the file system's own needs


class Contents(Protocol):
    """The weights of an output: a Plan's, or an adapter's."""

    @property
    def prefix(self) -> str:
        """What the files are called after."""

    @property
    def save_format(self) -> str:
        """A key of frames.formats.FORMATS."""

    @property
    def shards(self) -> tuple[Shard, ...]: ...

    def index(self) -> bytes | None:
        """The content of the index file, None for no index."""


def check_output(
    folder: str,
    inputs: Sequence[str],
    save_format: str,
    prefix: str,
    nbytes: int,
    names: Iterable[str],
    overwrite: bool,
) -> list[str]:
    """Why `nbytes` of weights called `prefix`, and files called `names`, can't be written to `folder`: sentences.

    inputs: paths of checkpoints and of their files. Touches nothing.
    """
    problems = []
    folder = os.path.abspath(folder)
    real = os.path.realpath(folder)
    for path in inputs:
        target = os.path.realpath(path)
        if real == (os.path.dirname(target) if os.path.isfile(target) else target):
            problems.append(f"--output_path {folder} is or holds one of the inputs ({path}); choose another folder")
            break
    if os.path.lexists(folder) and not os.path.isdir(folder):
        problems.append(f"--output_path {folder} exists and is not a folder")
    elif os.path.isdir(folder) and not problems:
        held = [name for name in sorted(os.listdir(folder)) if not _left_behind(name, prefix)]
        foreign = [name for name in held if name.endswith(WEIGHTS) and not is_weights(name, save_format, prefix)]
        if held and not overwrite:
            problems.append(f"--output_path {folder} exists and is not empty; pass --overwrite to replace the weights in it")
        if foreign:
            problems.append(
                f"--output_path {folder} holds weights that loaders would mix with the merged ones: {', '.join(foreign)}"
            )
        for name in names:
            if os.path.isdir(os.path.join(folder, name)):
                problems.append(f"--output_path {folder} holds a folder where the file {name} should go")
    parent = existing_parent(real)
    blocking = os.path.join(parent, os.path.relpath(real, parent).split(os.sep)[0])
    if real != parent and blocking != real and os.path.lexists(blocking):
        problems.append(f"--output_path {folder}: {blocking} is a file, so there can be no folder in it")
    if not os.access(parent, os.W_OK):
        problems.append(f"--output_path {folder}: no permission to write in {parent}")
    free = free_bytes(folder, prefix)
    needed = nbytes + MARGIN  # beside an earlier merge, which is replaced only when this one is whole
    if free < needed:
        problems.append(
            f"--output_path {folder}: the merge needs {needed / 1e9:.2f} GB of disk, {free / 1e9:.2f} GB are free there"
        )
    return problems


def free_bytes(folder: str, prefix: str) -> int:
    """How much can be written to the folder: what is free there, and what a merge that was killed left, which goes."""
    free = shutil.disk_usage(existing_parent(os.path.realpath(folder))).free
    left = [os.path.join(folder, name) for name in (os.listdir(folder) if os.path.isdir(folder) else ())]
    return free + sum(os.stat(path).st_blocks * 512 for path in left if _left_behind(os.path.basename(path), prefix))


@contextlib.contextmanager
def uninterrupted(redeliver: bool = True) -> Iterator[None]:
    """Signals that would end the merge wait until the block is done; without `redeliver` they are dropped.

    Launchers and people send several. Outside of the main thread none arrive.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda received, _: arrived.append(received)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if arrived and redeliver:
        signal.raise_signal(arrived[0])


class Output:
    """The files of one merge on their way to `folder`. Use `create`, then `finish` or `abandon`.

    record: the name of the file that is written last.
    """

    def __init__(self, folder: str, plan: Contents, record: str = RECORD):
        self.folder, self._plan, self._record = os.path.abspath(folder), plan, record
        self._created_folders: list[str] = []
        self._written: list[str] = []  # everything that must go if the merge fails
        self._set_aside: list[str] = []  # an earlier merge's files, which then come back
        self._lock: int | None = None

    @property
    def partial_paths(self) -> tuple[str, ...]:
        return tuple(self._path(shard.name + PARTIAL) for shard in self._plan.shards)

    def create(self, resume: bool = False) -> None:
        """Make the folder and the pre-sized shards, what stands around tensors written. Raises OutputError.

        resume: keep what a merge of the same plan that was stopped has written to its shards, and its journals.
        """
        try:
            self._make_folder(self.folder)
            self._take_lock()
            for name in os.listdir(self.folder):
                kept = resume and (is_journal(name) or self._path(name) in self.partial_paths)
                if _left_behind(name, self._plan.prefix) and not kept:
                    os.unlink(self._path(name))
            for shard, path in zip(self._plan.shards, self.partial_paths, strict=True):
                self._written.append(path)
                with open(path, "r+b" if os.path.exists(path) else "wb") as file:
                    for offset, content in shard.frame:
                        file.seek(offset)
                        file.write(content)
                    file.truncate(shard.nbytes)
            fsync(self.folder)
        except OSError as error:
            raise self._failure(error) from None

    def drop_journals(self, but: int | None = None) -> None:
        """Remove the journals of all ranks, or of all others. Raises OSError."""
        for name in os.listdir(self.folder):
            if is_journal(name) and (but is None or name != name_of(but)):
                os.unlink(self._path(name))

    def wait_until_seen(self) -> None:
        """Until the shards that rank 0 created are seen here: a network file system may take a while. Raises OutputError."""
        limit = time.monotonic() + SEEN_SECONDS
        for shard, path in zip(self._plan.shards, self.partial_paths, strict=True):
            while not (os.path.isfile(path) and os.path.getsize(path) == shard.nbytes):
                if time.monotonic() > limit:
                    raise OutputError(
                        f"{path}: rank 0 created it, but it isn't seen here; ranks on several machines need an output folder"
                        " on a file system they share"
                    )
                time.sleep(0.1)

    def sync(self) -> None:
        """Make sure that what this machine wrote to the shards is on the disk. Raises OutputError."""
        try:
            for path in self.partial_paths:
                fsync(path)
        except OSError as error:
            raise self._failure(error) from None

    def finish(self, sidecars: Mapping[str, bytes], record: bytes) -> None:
        """Put everything at its final name. sidecars: contents of config, tokenizer and other files, by name; record: of
        the file that is written last. Raises OutputError; `abandon` then removes what was done."""
        index = self._plan.index()
        index_file = index_name(self._plan.save_format, self._plan.prefix)
        try:
            self.sync()
            for name, content in sidecars.items():
                self._write(name + PARTIAL, content)
            if index is not None:
                self._write(index_file + PARTIAL, index)
            self._write(self._record + PARTIAL, record)

            names = [*sidecars, *(shard.name for shard in self._plan.shards)]
            names += [*([index_file] if index is not None else []), self._record]
            with uninterrupted(redeliver=False):
                self._rename(names)
        except OSError as error:
            raise self._failure(error) from None
        self._drop_lock()

    def _rename(self, names: Sequence[str]) -> None:
        """Everything to its final name, in this order; what an earlier merge left goes aside, and away once this one stands.
        Raises OSError."""
        plan = self._plan
        for name in sorted({*os.listdir(self.folder), *names}, key=lambda name: name != self._record):
            if (name in names or is_weights(name, plan.save_format, plan.prefix)) and os.path.lexists(self._path(name)):
                self._set_aside.append(self._path(name))
                os.replace(self._path(name), self._path(name) + REPLACED)
        for name in names:
            self._written.append(self._path(name))
            os.replace(self._path(name + PARTIAL), self._path(name))
        fsync(self.folder)
        # From here on the merge stands, and there is nothing that `abandon` could undo.
        replaced = {path + REPLACED for path in self._set_aside}
        self._set_aside, self._written = [], []
        # A merge that was killed here left an earlier one's files, which had no other copy until now.
        replaced |= {self._path(name) for name in os.listdir(self.folder) if _left_behind(name, plan.prefix, REPLACED)}
        with contextlib.suppress(OSError):
            self.drop_journals()
        for path in replaced:
            with contextlib.suppress(OSError):
                os.unlink(path)

    def abandon(self, keep: bool = False) -> bool:
        """Bring an earlier merge back, remove everything written, and the folders that were made here. Signals wait.

        keep: leave the unfinished shards and their journals, for a merge that goes on. Returns whether that was done: not if
        the folder was never this merge's.
        """
        with uninterrupted():
            keep = keep and self._lock is not None
            for partial in self.partial_paths if keep else ():
                path = partial.removesuffix(PARTIAL)
                if path in self._written and not os.path.lexists(partial):
                    os.replace(path, partial)
            restored = {path for path in self._set_aside if self._restore(path)}
            for path in reversed(self._written):
                if path not in restored and not (keep and path in self.partial_paths):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(path)
            if self._lock is not None and not keep:
                with contextlib.suppress(OSError):
                    self.drop_journals()
            for folder in reversed(self._created_folders):
                with contextlib.suppress(OSError):  # something else is in it by now: leave it
                    os.rmdir(folder)
            self._drop_lock()
        return keep

    def _restore(self, path: str) -> bool:
        """Put an earlier merge's file back."""
        try:
            os.replace(path + REPLACED, path)
        except FileNotFoundError:  # it had not been moved yet
            return True
        except OSError as error:
            log.error("%s of the earlier merge could not be put back (%s): it is %s", path, error.strerror, path + REPLACED)
            return False
        return True

    def _failure(self, error: OSError) -> OutputError:
        return OutputError(f"{self.folder}: can't be written to ({error.strerror})")

    def _path(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def _make_folder(self, folder: str) -> None:
        missing = []
        while not os.path.isdir(folder):
            missing.append(folder)
            folder = os.path.dirname(folder)
        for folder in reversed(missing):
            os.mkdir(folder)
            self._created_folders.append(folder)

    def _take_lock(self) -> None:
        """One merge at a time; the system drops the lock of a process that dies. Raises OutputError."""
        self._lock = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._drop_lock()
            raise OutputError(f"--output_path {self.folder}: another merge is being written there") from None
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL):
                raise
            log.warning("%s: this file system has no locks, so nothing stops a second merge into it", self.folder)

    def _drop_lock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _write(self, name: str, content: bytes) -> None:
        path = self._path(name)
        self._make_folder(os.path.dirname(path))
        self._written.append(path)
        with open(path, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())


def _left_behind(name: str, prefix: str, ending: str = PARTIAL) -> bool:
    """Whether this is what a merge that was killed leaves."""
    whole = name.removesuffix(ending)
    ours = any(is_weights(whole, save_format, prefix) for save_format in FORMATS) or whole in (CARD, RECORD, LOCK, *ADAPTERS)
    return name.endswith(ending) and (ours or is_journal(name) or any(fnmatch.fnmatch(whole, usual) for usual in COPIED))


def existing_parent(folder: str) -> str:
    """The folder itself, or the nearest above it that is there."""
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return folder
