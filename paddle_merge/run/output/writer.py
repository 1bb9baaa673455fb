"""Write the output folder. Shards are created at full size under a `.partial` name, so that workers can write anywhere in
them. They get their final names when all is written: the index, config.json and merge_config.json last, each when everything
before it is on the disk. So a folder that looks complete is complete.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from typing import Protocol

from ...checkpoints.formats.naming import index_name, is_weights
from ...errors import OutputError
from ...plan.file_names import NAMES, PARTIAL, RECORD, REPLACED, is_journal, journal_name
from ...plan.plan import Shard
from .disk import fsync, remedy
from .flock import FolderLock
from .leftovers import left_behind, read_names
from .signals import uninterrupted

log = logging.getLogger("paddle_merge")
CONFIG = "config.json"  # few loaders open a folder without it
SEEN_SECONDS = 60.0


class Contents(Protocol):
    """The weights that an output has: those of a Plan, or of an adapter."""

    @property
    def prefix(self) -> str:
        """The beginning of the files' names."""

    @property
    def save_format(self) -> str:
        """A key of checkpoints.formats.naming.FORMATS."""

    @property
    def shards(self) -> tuple[Shard, ...]: ...

    def index(self) -> bytes | None:
        """Return the content of the index file; None if there is none."""


class Output:
    """Writes the files of one merge to `folder`. Call `create`, then `finish` or `abandon`.

    record: the name of the file that is written last.
    """

    def __init__(self, folder: str, plan: Contents, record: str = RECORD):
        self.folder, self._plan, self._record = os.path.abspath(folder), plan, record
        self.lock = FolderLock(self.folder)
        self._created_folders: list[str] = []
        self._written: list[str] = []  # everything that is removed if the merge fails
        self._renaming: list[str] = []  # the final names that are being given

    @property
    def partial_paths(self) -> tuple[str, ...]:
        return tuple(self._path(shard.name + PARTIAL) for shard in self._plan.shards)

    def create(self, resume: bool = False) -> None:
        """Create the folder and the shards at full size, with everything but the tensors written. Raises OutputError.

        resume: keep the shards and journals of an interrupted merge of the same plan.
        """
        try:
            self._make_folder(self.folder)
            self.lock.take()
            self._clear(resume)
            for shard, path in zip(self._plan.shards, self.partial_paths, strict=True):
                self._written.append(path)
                with open(path, "r+b" if os.path.exists(path) else "wb") as file:
                    for offset, content in shard.header:
                        file.seek(offset)
                        file.write(content)
                    file.truncate(shard.nbytes)
            fsync(self.folder)
        except OSError as error:
            raise self._failure(error) from None

    def drop_journals(self, but: int | None = None) -> None:
        """Remove the journals of all ranks, or of all but one. Raises OSError."""
        for name in os.listdir(self.folder):
            if is_journal(name) and (but is None or name != journal_name(but)):
                os.unlink(self._path(name))

    def wait_until_seen(self) -> None:
        """Wait until this machine sees the shards that rank 0 created: a network file system may take a while.

        Raises OutputError after SEEN_SECONDS.
        """
        limit = time.monotonic() + SEEN_SECONDS
        for shard, path in zip(self._plan.shards, self.partial_paths, strict=True):
            while not (os.path.isfile(path) and os.path.getsize(path) == shard.nbytes):
                if time.monotonic() > limit:
                    raise OutputError(
                        f"{path}: rank 0 created it, but this machine doesn't see it; ranks on several machines need an"
                        " output folder on a shared file system"
                    )
                time.sleep(0.1)

    def sync(self) -> None:
        """Flush what this machine wrote to the shards to the disk. Raises OutputError."""
        try:
            for path in self.partial_paths:
                fsync(path)
        except OSError as error:
            raise self._failure(error) from None

    def finish(self, sidecars: Mapping[str, bytes], record: bytes) -> None:
        """Write the other files, and give all files their final names.

        sidecars: contents of config, tokenizer and other files, by name. record: the content of the file that is written
        last. Raises OutputError; `abandon` then removes what was done.
        """
        index = self._plan.index()
        index_file = index_name(self._plan.save_format, self._plan.prefix)
        contents = {name: content for name, content in sidecars.items() if name != CONFIG}
        last = {index_file: index} if index is not None else {}
        last |= {CONFIG: sidecars[CONFIG]} if CONFIG in sidecars else {}
        shards = [shard.name for shard in self._plan.shards]
        names = [*contents, *shards, *last, self._record]
        try:
            self.sync()
            self._write(NAMES, json.dumps(names).encode("utf-8", "surrogatepass"))
            fsync(self.folder)
            for name, content in (contents | last).items():
                self._write(name + PARTIAL, content)
            self._sync_names(names)
            self._write(self._record + PARTIAL, record)
            fsync(self.folder)
            with uninterrupted(redeliver=False):
                self._rename(names, [*last, self._record])
        except OSError as error:
            raise self._failure(error) from None
        self.lock.drop()

    def _rename(self, names: Sequence[str], gates: Sequence[str]) -> None:
        """Give all files their final names, in this order. Files of an earlier merge are first renamed, in the other
        order, and removed once this merge is complete.

        gates: the last names; each is given when all names before it have reached the disk. Raises OSError.
        """
        plan, there = self._plan, set(os.listdir(self.folder))
        older = {name for name in there if is_weights(name, plan.save_format, plan.prefix)}
        self._renaming = list(names)
        for name in [*reversed(names), *sorted(older.difference(names))]:
            if os.path.lexists(self._path(name)):
                os.replace(self._path(name), self._path(name) + REPLACED)
        self._sync_names(names)
        for name in names:
            if name in gates:
                self._sync_names(names)
            os.replace(self._path(name + PARTIAL), self._path(name))
        self._sync_names(names)
        # From here on the merge is complete, and there is nothing that `abandon` could undo.
        self._renaming, self._written = [], []
        with contextlib.suppress(OSError):
            self.drop_journals()
        self._drop_replaced(names)
        with contextlib.suppress(OSError):
            os.unlink(self._path(NAMES))

    def _undo(self, names: Sequence[str]) -> bool:
        """Take back the final names of a merge that was interrupted while it gave them; return whether that succeeded.

        A file with a final name and no partial one is this merge's. The record goes first: while there is a partial
        record, all that was written is known to be complete, and undoing can be interrupted and started again.
        """
        well = True
        for name in reversed(names):
            if os.path.lexists(self._path(name)) and not os.path.lexists(self._path(name + PARTIAL)):
                try:
                    os.replace(self._path(name), self._path(name + PARTIAL))
                except OSError:
                    with contextlib.suppress(OSError):
                        os.unlink(self._path(name))
        for path in self._replaced(names):
            try:
                os.replace(path + REPLACED, path)
            except OSError as error:
                well = False
                sentence = "%s of the earlier merge could not be restored (%s): it is now %s"
                log.error(sentence, path, error.strerror, path + REPLACED)
        with contextlib.suppress(OSError):
            self._sync_names(names)
        return well

    def _clear(self, resume: bool) -> None:
        """Remove what killed merges have left, but for what `resume` needs, and restore what they had renamed.

        Raises OSError; OutputError if files of an earlier merge can't be restored.
        """
        if not resume:
            self.drop_journals()
        names = read_names(self.folder)
        record = self._path(names[-1] + PARTIAL) if names else ""
        if names and os.path.lexists(record):
            if not self._undo(names):
                raise OutputError(f"{self.folder}: an earlier merge is there under other names; rename its files back")
            os.unlink(record)
            fsync(self.folder)
        elif not os.path.lexists(self._path(self._record + PARTIAL)):
            self._drop_replaced(names)
        for name in [*os.listdir(self.folder), *(name + PARTIAL for name in names)]:
            kept = name == NAMES or (resume and (is_journal(name) or self._path(name) in self.partial_paths))
            ours = name.endswith(PARTIAL) and name.removesuffix(PARTIAL) in names
            if (ours or left_behind(name, self._plan.prefix)) and not kept:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._path(name))
        for name in names:
            while name := os.path.dirname(name):
                with contextlib.suppress(OSError):  # there is something else in it
                    os.rmdir(self._path(name))
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path(NAMES))

    def abandon(self, keep: bool = False) -> bool:
        """Restore an earlier merge, and remove everything written and the folders that were made. Signals are delayed.

        keep: leave the unfinished shards and their journals for a merge that continues. Returns whether they were left,
        which they are not if this merge never had the folder.
        """
        with uninterrupted():
            keep = keep and self.lock.file is not None
            needed = set(self.partial_paths) if keep else set()
            if self._renaming and not self._undo(self._renaming):  # the next merge will try again
                needed |= {self._path(NAMES), self._path(self._renaming[-1] + PARTIAL)}
            for path in sorted(set(self._written), key=lambda path: path != self._path(self._record + PARTIAL)):
                if path not in needed:
                    with contextlib.suppress(OSError):
                        os.unlink(path)
            if self.lock.file is not None and not keep:
                with contextlib.suppress(OSError):
                    self.drop_journals()
            for folder in reversed(self._created_folders):
                with contextlib.suppress(OSError):  # it holds something else by now
                    os.rmdir(folder)
            self.lock.drop()
        return keep

    def _replaced(self, names: Sequence[str]) -> list[str]:
        """Return the paths of an earlier merge's files that were renamed."""
        there = [
            name.removesuffix(REPLACED) for name in os.listdir(self.folder) if left_behind(name, self._plan.prefix, REPLACED)
        ]
        return [path for path in map(self._path, dict.fromkeys([*names, *there])) if os.path.lexists(path + REPLACED)]

    def _drop_replaced(self, names: Sequence[str]) -> None:
        for path in self._replaced(names):
            with contextlib.suppress(OSError):
                os.unlink(path + REPLACED)

    def _sync_names(self, names: Sequence[str]) -> None:
        for folder in {os.path.dirname(self._path(name)) for name in names}:
            fsync(folder)

    def _failure(self, error: OSError) -> OutputError:
        return OutputError(f"{self.folder}: can't be written to ({error.strerror}){remedy(error, self._path(NAMES))}")

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
            with contextlib.suppress(PermissionError):  # to read it
                fsync(os.path.dirname(folder))

    def _write(self, name: str, content: bytes) -> None:
        path = self._path(name)
        self._make_folder(os.path.dirname(path))
        self._written.append(path)
        with open(path, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
