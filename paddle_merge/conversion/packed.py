"""Read integers of compressed-tensors that are packed into words of 32 bits: weight_packed, weight_shape, weight_zero_point.

Element i of a row has the bits from number i * bits of the row's words on. With 4 and 8 bits that is the order of the file's
nibbles and bytes, so nothing has to be unpacked beforehand. With other numbers of bits, versions of the library differ.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import numpy as np

from ..checkpoints.files import Files
from ..checkpoints.parts import assemble
from ..checkpoints.tensors import Part, StoredEntry, TensorEntry, stored
from ..dtypes import BY_NAME
from ..errors import MalformedError

PACKED = "_packed"  # how the names of packed weights end
_BYTE = BY_NAME["uint8"]


def packed_codes(name: str, tensors: Mapping[str, TensorEntry]) -> tuple[StoredEntry, int]:
    """Return the codes of the packed weight `name` + "_packed", and how many bits each has. They count from 0.

    Its shape is read from `name` + "_shape". Raises MalformedError, with the end of a sentence, if that can't be.
    """
    words, shape = stored(tensors[f"{name}{PACKED}"]), tensors.get(f"{name}_shape")
    if words.dtype.name != "int32" or len(words.shape) != 2 or words.parts:
        raise MalformedError(f"is {words.dtype.name} {list(words.shape)}, or stored in parts, and can't be unpacked")
    if shape is None or shape.shape != (2,) or shape.dtype.name not in ("int64", "int32"):
        raise MalformedError(f"has no {name.rpartition('.')[2]}_shape, so it isn't known how many numbers it holds")
    raw = np.empty(2, shape.dtype.raw)
    with contextlib.closing(Files()) as files:
        files.read(shape, 0, raw)
    rows, columns = map(int, raw)
    bits = 32 * words.shape[1] // max(1, columns)
    if bits not in (4, 8) or (rows, columns * bits) != (words.shape[0], 32 * words.shape[1]):
        raise MalformedError(
            f"holds [{rows}, {columns}] numbers in {list(words.shape)} words, and only 4 and 8 bits for each can be read,"
            " without padding"
        )
    part = _part(words, bits, (0, 0), (rows, columns), (columns, 1))
    return assemble(name, _BYTE, (rows, columns), [part]), bits


def packed_zeros(entry: StoredEntry, bits: int, shape: tuple[int, ...]) -> StoredEntry:
    """Return zero points (rows, groups) that are packed along their rows. Raises MalformedError."""
    rows, groups = shape
    each = 32 // bits
    if entry.dtype.name != "int32" or entry.parts or entry.shape != (-(-rows // each), groups):
        raise MalformedError(f"has zero points of {entry.dtype.name} {list(entry.shape)}, which can't be read")
    parts = [
        _part(entry, bits, (first, 0), (min(each, rows - first), groups), (1, each), first * groups)
        for first in range(0, rows, each)
    ]
    return assemble(entry.name, _BYTE, shape, parts)


def _part(
    words: StoredEntry, bits: int, at: tuple[int, ...], shape: tuple[int, ...], strides: tuple[int, ...], skipped: int = 0
) -> Part:
    """Return a box of packed numbers, `skipped` numbers behind the beginning of the words."""
    offset = words.offset * 8 // bits + skipped
    return Part(words.file, offset, at, shape, strides, origin=words.origin, nibbles=bits == 4)
