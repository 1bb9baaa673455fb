"""Simulate what a disk may hold after a power cut, for a merge that ran with tests/faults/injection and its `shadow`."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from random import Random

import numpy as np

PAGE = 4096


def cut(place: Path, control: Path, before: dict[str, int], random: Random) -> None:
    """Replace the content of `place` by a state that a power cut may leave. before: path -> inode at the merge's start.

    What was fsync'ed is kept. Each page written since may be kept or lost. Of the names created, renamed or removed since
    the last fsync of their folder, each change may be kept or lost, or only the first few are kept.
    """
    made: set[int] = set()
    safe: list[list[str | int]] = []
    loose: list[list[str | int]] = []
    log = control / "log"
    for line in log.read_text().splitlines() if log.exists() else ():
        word, *rest = json.loads(line)
        if word == "sync":
            safe += [op for op in loose if _folder(op) == rest[0]]
            loose = [op for op in loose if _folder(op) != rest[0]]
        else:
            loose.append([word, *rest])
            made |= {rest[1]} if word == "create" else set()
    how = random.choice(["none", "all", "first", "any"])
    if how == "first":
        loose = loose[: random.randint(0, len(loose))]
    elif how != "all":
        loose = [op for op in loose if how == "any" and random.random() < 0.5]
    names, folders = _apply(before, safe, loose)

    contents = {inode: _content(inode, made, control, place, random) for inode in names.values()}
    shutil.rmtree(place)
    place.mkdir()
    for folder in sorted(folders):
        Path(folder).mkdir(exist_ok=True)
    for path, inode in names.items():
        if Path(path).parent.is_dir():
            Path(path).write_bytes(contents[inode])


def _folder(op: list[str | int]) -> str:
    return os.path.dirname(str(op[1]))


def _apply(
    before: dict[str, int], safe: list[list[str | int]], loose: list[list[str | int]]
) -> tuple[dict[str, int], set[str]]:
    """Return names with their inodes, and folders, after these operations."""
    names, folders = dict(before), {os.path.dirname(path) for path in before}
    for word, path, *rest in [*safe, *loose]:
        if word == "mkdir":
            folders.add(str(path))
        elif word == "create":
            names[str(path)] = int(rest[0])
        elif word == "unlink":
            names.pop(str(path), None)
        else:
            names.pop(str(path), None)
            names[str(rest[0])] = int(rest[1])
    return names, folders


def _content(inode: int, made: set[int], control: Path, place: Path, random: Random) -> bytes:
    kept = control / "inodes" / str(inode)
    if not kept.exists():
        (kept,) = [path for path in place.rglob("*") if path.is_file() and path.stat().st_ino == inode]
    live = kept.read_bytes()
    if inode not in made:
        return live
    synced = control / "safe" / str(inode)
    safe = synced.read_bytes() if synced.exists() else b""
    size = random.choice([len(safe), max(len(live), len(safe))])
    pages = -(-max(size, len(live), len(safe)) // PAGE)
    old, new = (np.frombuffer(content.ljust(pages * PAGE, b"\0"), np.uint8).reshape(pages, PAGE) for content in (safe, live))
    there = np.random.default_rng(random.getrandbits(32)).random(pages) < random.choice([0, 0.5, 1])
    return bytes(np.where(there[:, None], new, old).tobytes()[:size])
