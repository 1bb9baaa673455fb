"""Read tensors that are stored, quantised or not, with or without adapters folded in. run/sources.py has the readers of all
others."""

from __future__ import annotations

from ..checkpoints.files import Files, StoredReader
from ..checkpoints.scaled import ScaledEntry
from ..checkpoints.tensors import ElementReader, TensorEntry, stored
from .lora.entry import AdaptedEntry


def reader(entry: TensorEntry, compute: str, files: Files) -> ElementReader:
    """Return the reader of a tensor. compute: the dtype that it is merged in, "float32" or "float64".

    Raises WorkError, as Files.read does, where something has to be read first; ValueError for other entries.
    """
    match entry:
        case ScaledEntry():
            from .scaled_reader import ScaledReader  # planning does without

            return ScaledReader(entry, compute, files)
        case AdaptedEntry():
            from .lora.adapted import AdaptedReader  # planning does without

            return AdaptedReader(entry, compute, files)
    return StoredReader(stored(entry), files)
