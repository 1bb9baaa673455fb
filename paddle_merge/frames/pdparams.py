"""Paddle's pickles, as paddle.save writes a state dict with protocol 4: a dict of NumPy arrays by name, and a table of
parameter names, without which paddle.load would leave them arrays. bfloat16 is stored as its bits, in uint16.

The words are NumPy 1's, which NumPy 2 still knows; it is not so the other way round.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Sequence

import numpy as np

from . import Frame, Held

NAMES = "StructuredToParameterName@@"
HELD = ("bfloat16", "float16", "float32", "float64", "bool", "int8", "uint8", "int16", "int32", "int64")
# What paddle.save writes, protocol 4: instructions by their letters in pickletools.
_START, _STOP = b"\x80\x04}(", b"u."  # PROTO EMPTY_DICT MARK, SETITEMS STOP
_NEW_ARRAY = b"K\0\x85C\x01b\x87R"  # (.., 0) TUPLE1 b"b" TUPLE3 REDUCE
_NEW_DTYPE, _DTYPE_STATE = b"\x89\x88\x87R", b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"


def frame(tensors: Sequence[Held], format: str | None) -> Frame:
    memo: dict[str, int] = {}
    pieces: list[tuple[int, bytes]] = []
    offsets: list[int] = []
    at, text = 0, _START
    for name, dtype, shape, nbytes in tensors:
        text += _text(name) + _word(memo, "numpy.core.multiarray", "_reconstruct") + _word(memo, "numpy", "ndarray")
        text += _NEW_ARRAY + b"(K\x01(" + b"".join(map(_number, shape)) + b"t"
        text += _dtype(memo, np.dtype("<f2" if dtype.name == "float16" else dtype.raw))
        text += b"\x89\x8e" + struct.pack("<Q", nbytes)  # not Fortran's order; BINBYTES8
        pieces.append((at, text))
        offsets.append(at + len(text))
        at, text = at + len(text) + nbytes, b"tb"
    text += _text(NAMES) + b"}(" + b"".join(_text(tensor.name) * 2 for tensor in tensors) + b"u" + _STOP
    return Frame((*pieces, (at, text)), tuple(offsets), at + len(text))


def problems(tensors: Sequence[Held]) -> list[str]:
    return [
        f"tensor {tensor.name!r} is {tensor.dtype.name}, which Paddle has no tensors of: leave out --save_format pdparams"
        for tensor in tensors
        if tensor.dtype.name not in HELD
    ] + [
        f"tensor {tensor.name!r} is called as Paddle calls its table of names" for tensor in tensors if tensor.name == NAMES
    ]


def _text(text: str) -> bytes:
    raw = text.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def _number(number: int) -> bytes:
    return pickle.dumps(number, 2)[2:-1]  # without PROTO and STOP


def _word(memo: dict[str, int], module: str, name: str) -> bytes:
    return _once(memo, name, _text(module) + _text(name) + b"\x93")  # STACK_GLOBAL


def _dtype(memo: dict[str, int], dtype: np.dtype) -> bytes:
    order, code = dtype.str[0], dtype.str[1:]
    if code in memo:
        return _once(memo, code, b"")
    made = _word(memo, "numpy", "dtype") + _text(code) + _NEW_DTYPE + b"(K\x03" + _text(order) + _DTYPE_STATE
    return _once(memo, code, made)


def _once(memo: dict[str, int], key: str, made: bytes) -> bytes:
    """What makes it the first time, and recalls it from then on."""
    if key in memo:
        return b"h" + bytes([memo[key]])  # BINGET
    memo[key] = len(memo)
    return made + b"\x94"  # MEMOIZE
