"""What stands around the weights in a file, made of their names, dtypes and shapes alone: one module per format. So every
weight's place is known before one is written, and any worker can write anywhere."""

from __future__ import annotations

from typing import NamedTuple

from ...dtypes import DType


class Held(NamedTuple):
    """A tensor that a file is to hold."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    nbytes: int


class Header(NamedTuple):
    """pieces: the bytes around the tensors, each with its offset. offsets: of the tensors, in order. nbytes: of the file."""

    pieces: tuple[tuple[int, bytes], ...]
    offsets: tuple[int, ...]
    nbytes: int
