"""Check whether an output folder can be written to: its content, permissions and free space. Nothing is changed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence

from ...checkpoints.formats.naming import is_weights
from ...checkpoints.json_files import read_small
from ...parsing import size_text
from ...plan.file_names import CARD, LOCK, RECORD, WEIGHTS
from .leftovers import half_named, is_unfinished, left_behind

MARGIN = 16 << 20  # bytes kept free for config, tokenizer and the file system's own needs


def check_output(
    folder: str,
    inputs: Sequence[str],
    save_format: str,
    prefix: str,
    names: Iterable[str],
    overwrite: bool,
    resume: bool = False,
) -> list[str]:
    """Return sentences on why weights called `prefix`, and files called `names`, can't be written to `folder`.

    inputs: paths of checkpoints and of their files. resume: whether to continue an interrupted merge. Touches nothing.
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
        ours = half_named(folder)
        held = [name for name in sorted(os.listdir(folder)) if not (left_behind(name, prefix) or name in ours)]
        foreign = [name for name in held if name.endswith(WEIGHTS) and not is_weights(name, save_format, prefix)]
        names = list(names)
        card = CARD in held and CARD in names
        if held and not overwrite:
            what = f"the weights and {CARD}" if card else "the weights"
            why = "exists and is not empty"
            if resume and LOCK in held:
                why = "holds a finished merge, so there is nothing to resume (`verify` checks it)"
                if is_unfinished(folder):
                    why = "holds a finished merge, beside the interrupted one that was to replace it"
            problems.append(f"--output_path {folder} {why}; pass --overwrite to replace {what} in it")
        elif card and RECORD not in held and not _is_ours(os.path.join(folder, CARD)):
            problems.append(
                f"--output_path {folder} holds a {CARD} that no merge wrote; move it away, or choose another folder"
            )
        if foreign:
            problems.append(
                f"--output_path {folder} holds weights that loaders would mix with the merged ones: {', '.join(foreign)};"
                " move them away, or choose another folder"
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
    return problems


def shortage(folder: str, prefix: str, nbytes: int) -> list[str]:
    """Return a sentence if the disk has no room for `nbytes` of weights called `prefix`, else an empty list."""
    folder = os.path.abspath(folder)
    free = free_bytes(folder, prefix)
    needed = nbytes + MARGIN  # beside an earlier merge, which is replaced only when this one is whole
    if free >= needed:
        return []
    return [
        f"--output_path {folder}: the merge needs {size_text(needed, round_up=True)} of disk, and {size_text(free)} are free"
        " there"
    ]


def _is_ours(card: str) -> bool:
    """Return whether a card says that paddle_merge made it; that of a merge that was killed has no record beside it."""
    try:
        return b"paddle_merge" in read_small(card)
    except OSError:
        return False


def free_bytes(folder: str, prefix: str) -> int:
    """Return the bytes that can be written to the folder, including files of a killed merge, which will be removed."""
    free = shutil.disk_usage(existing_parent(os.path.realpath(folder))).free
    left = [os.path.join(folder, name) for name in (os.listdir(folder) if os.path.isdir(folder) else ())]
    return free + sum(os.stat(path).st_blocks * 512 for path in left if left_behind(os.path.basename(path), prefix))


def existing_parent(folder: str) -> str:
    """Return the folder itself, or the nearest one above it that exists."""
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return folder
