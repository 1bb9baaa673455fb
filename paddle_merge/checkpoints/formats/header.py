"""Describe what a file holds besides the bytes of its tensors: the header, and for .pdparams pickle code between tensors.

The functions `header` of safetensors.py and pdparams.py make it from names, dtypes and shapes alone. So the offset of every
tensor is known before any is computed, and workers can write their parts of a file in any order.
"""

from __future__ import annotations

from typing import NamedTuple

from ...dtypes import DType


class Held(NamedTuple):
    """Describe a tensor that a file is to hold. nbytes: the bytes of its elements."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    nbytes: int


class Header(NamedTuple):
    """Hold what is to be written besides the tensors, and where.

    pieces: (offset, bytes) of each piece of it. offsets: byte offsets of the tensors, in order. nbytes: size of the file.
    """

    pieces: tuple[tuple[int, bytes], ...]
    offsets: tuple[int, ...]
    nbytes: int
