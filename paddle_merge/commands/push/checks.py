"""Check, before anything is uploaded, that a folder holds a finished checkpoint or adapter."""

from __future__ import annotations

import logging
import os
import shlex

from ...checkpoints.adapters import kind_of, open_adapter
from ...checkpoints.formats.folder import (
    ADAPTER,
    ADAPTER_CONFIGS,
    DIFFUSERS,
    PREFIXES,
    single_file_names,
    written_by_diffusers,
)
from ...checkpoints.open import open_folder
from ...errors import Attempts, CheckpointError
from ...plan.file_names import LOCK, PARTIAL, REPLACED, is_journal
from ...run.output.flock import is_held
from ...run.output.leftovers import left_behind
from ...run.output.lock import read_lock
from ..verify.verify import differing_files
from .private_paths import private_paths
from .tree import Tree

log = logging.getLogger("paddle_merge")
_NEEDED = ("README.md", *ADAPTER_CONFIGS.values(), "config.json")  # files that are not to be left out


def check(tree: Tree, public: bool) -> None:
    """Check that the folder's weights are whole, and pushed; log a warning about what may be a mistake.

    Reads headers and small files, and no weights. public: whether everybody is going to see the files. Raises
    CheckpointError listing everything that is wrong.
    """
    attempt = Attempts()
    attempt(_unfinished, tree.folder)
    attempt(_opens, tree)
    attempt(_as_recorded, tree)
    attempt.finish()
    for warning in _warnings(tree):
        log.warning("%s", warning)
    if found := private_paths(tree):
        (first, path), *_ = found.items()
        named = f"{first} names" if len(found) == 1 else f"{', '.join(found)} name"
        needed, others = ([name for name in found if (name in _NEEDED) is wanted] for wanted in (True, False))
        remedies = [f"edit {' and '.join(needed)}"] if needed else []
        remedies += [f"--exclude {shlex.join(others)} leaves out what no loader needs"] if others else []
        log.log(
            logging.WARNING if public else logging.INFO,
            "%s folders of this machine, such as %s: whoever may read the repository sees them; %s",
            named,
            path,
            "; ".join(remedies),
        )


def _unfinished(folder: str) -> None:
    """Raise CheckpointError if a merge into the folder is running, or was killed."""
    if is_held(folder):
        raise CheckpointError(f"{folder}: a merge is being written there; push it when that has ended")
    left = [
        name
        for name in sorted(os.listdir(folder))
        if is_journal(name) or any(left_behind(name, prefix, end) for prefix in PREFIXES for end in (PARTIAL, REPLACED))
    ]
    if left:
        resume = "" if any(name.startswith("adapter") for name in left) else "finish it by the same merge with --resume, or "
        raise CheckpointError(
            f"{folder}: a merge into it was stopped, and left {left[0]}; {resume}begin again with --overwrite"
        )


def _opens(tree: Tree) -> None:
    """Open the weights, and check that all of their files are pushed. Raises CheckpointError."""
    folder, prefix = tree.folder, DIFFUSERS if written_by_diffusers(tree.folder) else "model"
    try:
        tensors = open_folder(folder, prefix).tensors
    except CheckpointError:
        if not kind_of(folder):
            raise
        tensors, prefix = open_adapter(folder).tensors, ADAPTER
    files = {os.path.relpath(file, folder).replace(os.sep, "/") for entry in tensors.values() for file in entry.files}
    names = [name for single in single_file_names(prefix) for name in (f"{single}.index.json", single)]
    files |= set([name for name in names if os.path.isfile(os.path.join(folder, name))][:1])  # the index, if there is one
    if absent := sorted(files - tree.files.keys()):
        reasons = ", ".join(f"{name} ({tree.left_out.get(name, 'in a folder that is left out')})" for name in absent)
        raise CheckpointError(f"{folder}: without {reasons} its weights would not be whole at the hub")


def _as_recorded(tree: Tree) -> None:
    """Compare the folder with merge_lock.json, if it has one: sizes and headers of weights, and the other files.

    Raises CheckpointError if the weights differ; other files may have been edited, so about them it logs a warning.
    """
    if LOCK not in os.listdir(tree.folder):
        return
    lock = read_lock(tree.folder)
    problems = []
    for name, sentence in differing_files(tree.folder, lock).items():
        if name in lock.files:
            if name in tree.files:
                log.warning("%s, and %s describes the file as it was", sentence, LOCK)
        elif name in lock.shards or name in tree.files:
            problems.append(f"{sentence}; merge again, or, if that is meant, remove {LOCK}")
    if problems:
        raise CheckpointError(problems)


def _warnings(tree: Tree) -> list[str]:
    found = []
    if not kind_of(tree.folder) and "config.json" not in tree.files:
        found.append(f"{tree.folder}: has no config.json, without which few libraries load a model")
    if "README.md" not in tree.files:
        found.append(f"{tree.folder}: has no README.md, the model card that hubs show")
    return found
