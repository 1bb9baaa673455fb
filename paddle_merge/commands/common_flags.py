"""Flags that several commands have, and the checks of their values."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from ..backends.machine import cores, free_memory
from ..checkpoints.formats.folder import PREFIXES
from ..checkpoints.names import LAYOUTS
from ..recipe import fields
from ..recipe.fields import flag

OUTPUT, RUNNING = "Output", "Running"  # titles of help panels
PICK = 'Which of several best candidates is written: "maximize a subject to b >= 0.98 of ./math and c <= 3".'
MOST_WORKERS = 8  # threads by default; reading doesn't get faster with more


def as_in_merge(group: str, name: str) -> Any:
    """Return the field of this name that a merge has."""
    item = fields.Fields.__dataclass_fields__[name]
    return dataclasses.field(default=item.default, metadata={**item.metadata, "group": group})


def merge_prefix(group: str) -> Any:
    """Return the field for --merge_prefix."""
    help = "Which weights of a folder to read: model (model.safetensors), master_weights or diffusion_pytorch_model."
    return flag(group, help, "model", choices=PREFIXES)


def layout(group: str, words: str) -> Any:
    """Return the field for --layout. words: which words it takes, to be put behind its general description."""
    help = f"Storage layout of the weights of Linear layers, where it can't be detected: {words}."
    return flag(group, help, choices=LAYOUTS, shown="detected")


def top(what: str) -> Any:
    """Return the field for --top, the number of rows in each part of a table. what: what the rows are."""
    return flag(OUTPUT, f"How many {what} to list in the table; those that changed most come first.", 10, least=0)


def as_json(help: str, group: str = OUTPUT) -> Any:
    """Return the field for --json."""
    return flag(group, help, False)


def n_process() -> Any:
    """Return the field for --n_process of a command that works in threads."""
    return flag(RUNNING, "Number of worker threads.", shown=f"one for each core, at most {MOST_WORKERS}", least=1)


def workers(n_process: int | None) -> int:
    """Return the number of worker threads: n_process, or its default."""
    return n_process or min(MOST_WORKERS, cores())


def memory_for_inputs(workers: int) -> int:
    """Return how many bytes of inputs each of several processes may keep in memory: half of what is free, shared out."""
    return free_memory() // 2 // workers


def problems(config: Any) -> list[str]:
    """Return what is wrong with single fields of a dataclass of flags, one sentence each.

    Besides the checks of recipe.fields, a number must be at least the field's `least`.
    """
    found = fields.of_fields(config)
    for item in dataclasses.fields(config):
        value, least = getattr(config, item.name), item.metadata.get("least")
        if value is not None and least is not None and value < least:
            found.append(f"--{item.name} {value} must be at least {least}")
    return found


def file_problems(flag: str, path: str, endings: tuple[str, ...]) -> list[str]:
    """Return why a file can't be written to `path`, judged by its name and folder.

    endings: the allowed ones, the usual one first.
    """
    found = []
    if not path.lower().endswith(endings):
        found.append(f"--{flag} {path} must end in {endings[0]}")
    if not os.path.isdir(os.path.dirname(path) or "."):
        found.append(f"--{flag} {path}: no such folder; create it first")
    if os.path.isdir(path):
        found.append(f"--{flag} {path}: is a folder")
    return found
