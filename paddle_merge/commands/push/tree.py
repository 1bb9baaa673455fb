"""List the files of a folder that are pushed, and those that are left out, with the reasons."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from ...errors import CheckpointError, ConfigError
from ...parsing import one_line, shown
from ...plan.file_names import PARTIAL, REPLACED

# What is never pushed, by the name of a file or folder, whatever the case of its letters, and why.
_LEFT_OUT = {
    "state of training": (
        "optimizer*",
        "*.pdopt",
        "master_weight*",
        "scheduler.*",
        "scaler.*",
        "rng_state*",
        "random_states*",
        "training_args.*",
        "trainer_state.json",
        "global_step*",
        "zero_pp_rank*",
        "bf16_zero_pp_rank*",
        "checkpoint-*",
        "hf_checkpoint-*",
    ),
    "log of training": ("runs", "vdlrecords*", "events.out.tfevents*", "wandb", "*.log"),
    "temporary file": (f"*{PARTIAL}", f"*{REPLACED}", "*.tmp", "*.temp", "*.incomplete", "*.lock", "*.swp", "*.bak", "*~"),
    "compiled code": ("__pycache__", "*.pyc"),
    "hidden": (".*",),
    "may hold a secret": ("id_rsa*", "id_ed25519*", "*.pem", "*.key", "token", "*.env", "env.*"),
}
_BAD = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # control characters, and bytes that are not UTF-8
_SNAPSHOT = re.compile(r"(.*/models--[^/]+)/snapshots/[^/]+")


@dataclass
class Tree:
    """Hold what is pushed of a folder.

    files: the path within the folder, with / between its parts -> bytes. left_out: the same paths, those of folders with a /
    behind -> the reason.
    """

    folder: str
    files: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """The size of all files that are pushed, in bytes."""
        return sum(self.files.values())


def list_tree(folder: str, exclude: Sequence[str] = ()) -> Tree:
    """Return the files of a folder and of its subfolders, sorted by name.

    exclude: patterns, as of a shell, of paths or names of files and folders that are left out besides those of _LEFT_OUT.
    Links to files of the folder, or within Hugging Face's cache, count as files. Raises ConfigError if a pattern matches
    nothing; CheckpointError listing what can't be read, is a link to elsewhere, or has a name that no hub takes.
    """
    tree, problems, used = Tree(folder), [], set()

    def why_not(path: str, name: str) -> str | None:
        for pattern in exclude:
            if fnmatchcase(path, pattern) or fnmatchcase(name, pattern):
                used.add(pattern)
                return "--exclude"
        return next((why for why, usual in _LEFT_OUT.items() if any(fnmatchcase(name.lower(), one) for one in usual)), None)

    def enter(within: str) -> None:
        try:
            entries = sorted(os.scandir(os.path.join(folder, within)), key=lambda entry: entry.name)
        except OSError as error:
            problems.append(f"{os.path.join(folder, within)}: can't be read ({error.strerror})")
            return
        for entry in entries:
            path = f"{within}{entry.name}"
            if reason := why_not(path, entry.name):
                tree.left_out[f"{path}/" if entry.is_dir() else path] = reason
            elif _BAD.search(entry.name):
                problems.append(
                    f"{one_line(entry.path)}: no hub takes a file or folder of this name; rename or --exclude it"
                )
            elif entry.is_dir(follow_symlinks=False):
                enter(f"{path}/")
            elif entry.is_dir():
                tree.left_out[f"{path}/"] = "a link to a folder"
            elif not entry.is_file():
                problems.append(f"{entry.path}: is no file, or a link whose target doesn't exist; remove or --exclude it")
            elif entry.is_symlink() and not _within(entry.path, folder):
                target = one_line(os.path.realpath(entry.path))
                problems.append(
                    f"{entry.path}: is a link to {target}, outside of {folder}; put a copy there or --exclude it"
                )
            elif not os.access(entry.path, os.R_OK):
                problems.append(f"{entry.path}: can't be read (Permission denied)")
            else:
                tree.files[path] = entry.stat().st_size

    enter("")
    if problems:
        raise CheckpointError(problems)
    if unused := [pattern for pattern in exclude if pattern not in used]:
        raise ConfigError(f"--exclude {shown(unused[0])} matches no file or folder in {folder}")
    return tree


def _within(link: str, folder: str) -> bool:
    """Return whether a link leads to a file of the folder, or to one of the same model in Hugging Face's cache."""
    target, root = os.path.realpath(link), os.path.realpath(folder)
    snapshot = _SNAPSHOT.match(root)
    return target.startswith((os.path.join(root, ""), *((f"{snapshot[1]}/blobs/",) if snapshot else ())))
