"""The output folder. Shards are created at full size under a `.partial` name, so that workers can write anywhere in them;
they get their final names when all is written, the index (or the single file) and merge_config.json last. A folder that
looks finished is finished.
"""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
from collections.abc import Sequence

from .errors import OutputError
from .plan import Plan

PARTIAL = ".partial"
RECORD = "merge_config.json"
MARGIN = 16 << 20  # bytes kept free for config, tokenizer and the file system's own needs


def check_output(folder: str, inputs: Sequence[str], prefix: str, nbytes: int, overwrite: bool) -> list[str]:
    """Why `nbytes` of weights called `prefix` can't be written to `folder`: sentences. inputs: paths. Touches nothing."""
    problems = []
    real = os.path.realpath(folder)
    for path in inputs:
        if real in (os.path.realpath(path), os.path.realpath(os.path.dirname(path)) if os.path.isfile(path) else None):
            problems.append(f"--output_path {folder} is one of the inputs ({path}); choose another folder")
    if os.path.lexists(folder) and not os.path.isdir(folder):
        problems.append(f"--output_path {folder} exists and is not a folder")
    elif os.path.isdir(folder) and not problems:
        if not overwrite and any(not name.endswith(PARTIAL) for name in os.listdir(folder)):
            problems.append(f"--output_path {folder} exists and is not empty; pass --overwrite to replace the weights in it")
        problems += _foreign_weights(folder, prefix)
    parent = _existing_parent(real)
    if not os.access(parent, os.W_OK):
        problems.append(f"--output_path {folder}: no permission to write in {parent}")
    free = shutil.disk_usage(parent).free
    needed = nbytes + MARGIN  # beside an earlier merge, which is replaced only when this one is whole
    if free < needed:
        problems.append(
            f"--output_path {folder}: the merge needs {needed / 1e9:.2f} GB of disk, {free / 1e9:.2f} GB are free there"
        )
    return problems


class Output:
    """The files of one merge on their way to `folder`. Use `create`, then `finish` or `abandon`."""

    def __init__(self, folder: str, plan: Plan):
        self.folder, self._plan = folder, plan
        self._created_folders: list[str] = []
        self._written: list[str] = []  # everything that must go if the merge fails

    @property
    def partial_paths(self) -> tuple[str, ...]:
        return tuple(self._path(shard.name + PARTIAL) for shard in self._plan.shards)

    def create(self) -> None:
        """Make the folder and the pre-sized shards, headers written. Raises OutputError."""
        try:
            self._make_folder()
            for stale in glob.glob(os.path.join(glob.escape(self.folder), f"*{PARTIAL}")):
                os.unlink(stale)
            for shard, path in zip(self._plan.shards, self.partial_paths, strict=True):
                self._written.append(path)
                with open(path, "wb") as file:
                    file.write(shard.header)
                    file.truncate(shard.nbytes)
        except OSError as error:
            raise OutputError(f"{self.folder}: can't be written to ({error.strerror})") from None

    def finish(self, sidecars: dict[str, bytes], record: bytes) -> None:
        """Put everything at its final name. sidecars: contents of config, tokenizer and other files, by name; record: of
        merge_config.json. Raises OutputError; `abandon` then removes what was done."""
        index = self._plan.index()
        index_name = f"{self._plan.recipe.prefix}.safetensors.index.json"
        try:
            for path in self.partial_paths:
                _sync(path)
            for name, content in sidecars.items():
                self._write(name + PARTIAL, content)
            if index is not None:
                self._write(index_name + PARTIAL, index)
            self._write(RECORD + PARTIAL, record)

            for stale in _old_weights(self.folder, self._plan.recipe.prefix):
                os.unlink(stale)
            names = [*sidecars, *(shard.name for shard in self._plan.shards)]
            for name in [*names, *([index_name] if index is not None else []), RECORD]:
                os.replace(self._path(name + PARTIAL), self._path(name))
                self._written.append(self._path(name))
            _sync(self.folder)
        except OSError as error:
            raise OutputError(f"{self.folder}: can't be written to ({error.strerror})") from None

    def abandon(self) -> None:
        """Remove everything written, and the folder if it was made here."""
        for path in reversed(self._written):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        for folder in reversed(self._created_folders):
            with contextlib.suppress(OSError):  # something else is in it by now: leave it
                os.rmdir(folder)

    def _path(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def _make_folder(self) -> None:
        missing = []
        folder = os.path.abspath(self.folder)
        while not os.path.isdir(folder):
            missing.append(folder)
            folder = os.path.dirname(folder)
        for folder in reversed(missing):
            os.mkdir(folder)
            self._created_folders.append(folder)

    def _write(self, name: str, content: bytes) -> None:
        path = self._path(name)
        self._written.append(path)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())


def _sync(path: str) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _old_weights(folder: str, prefix: str) -> list[str]:
    """An earlier merge's weights and index in the folder: left there, loaders would mix them with the new ones."""
    pattern = os.path.join(glob.escape(folder), f"{prefix}*.safetensors")
    return [*glob.glob(pattern), *glob.glob(f"{pattern}.index.json")]


def _foreign_weights(folder: str, prefix: str) -> list[str]:
    """Weights in other formats or under other names, which loaders would read beside the merged ones."""
    ours = {os.path.basename(path) for path in _old_weights(folder, prefix)}
    found = [
        name
        for name in sorted(os.listdir(folder))
        if name.endswith((".safetensors", ".pdparams", ".bin", ".distcp")) and name not in ours
    ]
    if not found:
        return []
    return [f"--output_path {folder} holds weights that loaders would mix with the merged ones: {', '.join(found)}"]


def _existing_parent(folder: str) -> str:
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return folder
