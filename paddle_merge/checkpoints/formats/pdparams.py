"""Paddle's own files: pickles of NumPy arrays, as paddle.save writes them, single and sharded."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...errors import CheckpointError, MalformedError
from ..tensors import Checkpoint, Part, StoredEntry
from ..views import assemble
from .arrays import WORDS, Array, Texts, named, naturals, place
from .folder import misplaced
from .header import Header, Held
from .pickles import load, open_window

_NAMES = "StructuredToParameterName@@"  # paddle.save's table of parameter names
_SLICES = "UnpackBigParamInfor@@"  # and of arrays that protocols 2 and 3 couldn't hold in one piece


def open_files(path: str, folder: str, files: Sequence[str], weight_map: dict[str, str] | None) -> Checkpoint:
    """The checkpoint made of `files`; `weight_map` (tensor -> shard), if given, must say exactly what the files hold."""
    return Checkpoint(path, folder, "np", join(path, files, weight_map, read_tensors), "pdparams")


def join(
    path: str, files: Sequence[str], weight_map: dict[str, str] | None, read: Callable[[str], list[StoredEntry]]
) -> dict[str, StoredEntry]:
    """The tensors of all files. Raises CheckpointError listing everything wrong with them."""
    tensors: dict[str, StoredEntry] = {}
    holders: dict[str, str] = {}
    problems: list[str] = []
    for file in files:
        try:
            entries = read(file)
        except CheckpointError as error:
            problems += error.problems
            continue
        for entry in entries:
            if entry.name in tensors:
                problems.append(f"{file}: tensor {entry.name!r} is also in {holders[entry.name]}")
            tensors[entry.name], holders[entry.name] = entry, file
    if weight_map is not None and not problems:
        problems = misplaced(path, holders, weight_map)
    if problems:
        raise CheckpointError(problems)
    return tensors


def read_tensors(file: str) -> list[StoredEntry]:
    """The tensors of one file, by offset. Raises CheckpointError listing all that is wrong with it."""
    with open_window(file) as window:
        content = load(window, WORDS)
    arrays, problems = name_arrays(file, content)
    entries, texts = [], Texts()
    for name, (shape, pieces) in arrays.items():
        try:
            entries.append(_entry(name, file, shape, pieces, texts))
        except MalformedError as error:
            problems.append(f"{file}: tensor {name!r} {error}")
    if problems:
        raise CheckpointError(problems)
    return sorted(entries, key=lambda entry: entry.offset)


def _entry(name: str, file: str, shape: tuple[int, ...] | None, pieces: Sequence[Array], texts: Texts) -> StoredEntry:
    """A tensor that is one array, or, if a shape is given, flat arrays one after the other. Raises MalformedError."""
    places = [place(piece, file, texts) for piece in pieces]
    dtypes = {dtype for dtype, _ in places}
    if len(dtypes) != 1:
        raise MalformedError("has slices of different dtypes")
    dtype = places[0][0]
    if shape is None:
        return assemble(name, dtype, pieces[0].shape, [places[0][1]])
    parts, end = [], 0
    for _, part in places:
        if len(part.shape) != 1:
            raise MalformedError("has slices that aren't flat")
        parts.append(Part(part.file, part.offset, (end,), part.shape, (1,), part.text))
        end += part.shape[0]
    return assemble(name, dtype, shape, parts)


Named = dict[str, tuple[tuple[int, ...] | None, list[Array]]]


def name_arrays(file: str, content: Any) -> tuple[Named, list[str]]:
    """The arrays of a file by tensor name, and sentences about what else is in it. Raises CheckpointError."""
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: holds no dict of names and tensors, so its weights have no names")
    content = dict(content)
    content.pop(_NAMES, None)
    sliced = content.pop(_SLICES, {})
    if not isinstance(sliced, dict):
        raise CheckpointError(f"{file}: its table of slices is damaged")
    whole: Named = {}
    for name, info in sliced.items():
        shape, keys = (info.get("OriginShape"), info.get("slices")) if isinstance(info, dict) else (None, None)
        shape = tuple(shape) if isinstance(shape, list) else shape
        pieces = [content.pop(key, None) if isinstance(key, str) else None for key in keys or ()]
        found = [piece for piece in pieces if isinstance(piece, Array)]
        if not naturals(shape) or not found or len(found) != len(pieces) or name in content or not isinstance(name, str):
            raise CheckpointError(f"{file}: its table of slices is damaged")
        whole[str(name)] = shape, found
    for name, value in content.items():
        if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str):
            content[name] = value[1]  # paddle.save's form of a tensor outside of a state dict: (its own name, array)
    remedy = "state = paddle.load({file!r}); paddle.save(state[{name!r}], 'model_state.pdparams')"
    arrays, problems = named(file, content, Array, remedy)
    return {**{name: (None, [array]) for name, array in arrays.items()}, **whole}, problems


NAMES = "StructuredToParameterName@@"
HELD = ("bfloat16", "float16", "float32", "float64", "bool", "int8", "uint8", "int16", "int32", "int64")
# What paddle.save writes, protocol 4: instructions by their letters in pickletools.
_START, _STOP = b"\x80\x04}(", b"u."  # PROTO EMPTY_DICT MARK, SETITEMS STOP
_NEW_ARRAY = b"K\0\x85C\x01b\x87R"  # (.., 0) TUPLE1 b"b" TUPLE3 REDUCE
_NEW_DTYPE, _DTYPE_STATE = b"\x89\x88\x87R", b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"


def header(tensors: Sequence[Held], format: str | None) -> Header:
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
    return Header((*pieces, (at, text)), tuple(offsets), at + len(text))


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
