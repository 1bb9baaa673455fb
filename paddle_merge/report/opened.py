"""Checkpoints opened together: their headers, adapters folded in, in one layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..detect import read_config
from ..errors import CheckpointError
from ..lora.fold import adapt
from ..quantised import signs
from ..readers import Checkpoint
from ..readers.adapters import open_model
from .headers import in_one_layout


@dataclass(frozen=True)
class Opened:
    """layout: None if it can't be told. notes: sentences on how the checkpoints came to be alike."""

    checkpoints: tuple[Checkpoint, ...]
    layout: str | None
    notes: list[str]


def open_together(specs: Sequence[str], layouts: Sequence[str | None], prefix: str) -> Opened:
    """Checkpoints of any formats and layouts, `base+adapter` too, in the first one's layout; no weights are read.

    layouts: stated ones, one each, or none. Raises CheckpointError listing everything wrong with any of them.
    """
    opened, problems = [], []
    for spec in specs:
        try:
            opened.append(open_model(spec, prefix))
        except CheckpointError as error:
            problems += error.problems
    if problems:
        raise CheckpointError(list(dict.fromkeys(problems)))
    checkpoints, adapters = [checkpoint for checkpoint, _ in opened], [held for _, held in opened]
    fallback = next((config for one in checkpoints if (config := read_config(one.folder))), {})
    viewed, layout, notes = in_one_layout(checkpoints, layouts, prefix)
    adapted, folded, noticed = adapt(viewed, adapters, specs, layout, fallback)
    for checkpoint in checkpoints:
        if found := signs(checkpoint, read_config(checkpoint.folder)):
            notes.append(f"{checkpoint.path} is quantised ({'; '.join(found)}): its codes are compared as plain numbers")
    return Opened(adapted, layout, [*notes, *folded, *noticed])
