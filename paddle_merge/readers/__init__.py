"""Checkpoints on disk: one file per format. `open_checkpoint` says which tensors there are; no weight is read here."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

from ..dtypes import DType
from ..errors import CheckpointError


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies: `nbytes` contiguous little-endian bytes at `offset` of `file`, in row-major order."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    file: str
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Checkpoint:
    """What the headers of one checkpoint say.

    path: as the user gave it.
    folder: where its config and tokenizer files are.
    format: the safetensors metadata `format` ("pt", "np", "pd" ...), None if absent.
    tensors: in storage order (file by file, offset by offset).
    """

    path: str
    folder: str
    format: str | None
    tensors: dict[str, TensorEntry]

    @property
    def nbytes(self) -> int:
        return sum(entry.nbytes for entry in self.tensors.values())


def read_json(path: str) -> Any:
    """The parsed file. Raises CheckpointError, naming the file, if it can't be read or isn't JSON with unique keys."""
    try:
        with open(path, "rb") as file:
            return parse_json(file.read())
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not valid JSON ({error})") from None


def parse_json(text: bytes) -> Any:
    """Strict JSON: UTF-8 throughout, no key twice in one object. Raises ValueError (or RecursionError)."""
    return json.loads(text.decode("utf-8"), object_pairs_hook=_unique_text)


def _unique_text(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    for key, value in pairs:
        f"{key}{value if isinstance(value, str) else ''}".encode()  # half of a surrogate pair is not text
    return unique_keys(pairs)


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For json.loads: an object. Raises ValueError where json would silently take the last of equal keys."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("the same key twice")
    return result


def open_checkpoint(path: str, prefix: str = "model") -> Checkpoint:
    """Read the headers of the checkpoint at `path`: a folder, or one .safetensors file.

    prefix: which weights of the folder, "model" or "master_weights": `{prefix}.safetensors`, or the shards named by
        `{prefix}.safetensors.index.json`.
    Raises CheckpointError listing everything wrong with it.
    """
    from . import safetensors

    if not os.path.exists(path):
        raise CheckpointError(
            f"{path}: no such file or folder (names of models on a hub are not resolved yet; give a local path)"
        )
    if os.path.isfile(path):
        if not path.endswith(".safetensors"):
            raise CheckpointError(f"{path}: only folders and .safetensors files can be read so far")
        return safetensors.open_files(path, os.path.dirname(path) or ".", [path], None)
    return safetensors.open_folder(path, prefix)
