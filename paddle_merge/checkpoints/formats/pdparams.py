"""Read and write Paddle's .pdparams files, single and sharded: pickles of NumPy arrays, as paddle.save writes them."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...errors import CheckpointError, MalformedError
from ..parts import assemble
from ..tensors import Checkpoint, Part, StoredEntry
from .arrays import WORDS, Array, Texts, named_tensors, naturals, place
from .folder import misplaced
from .header import Header, Held
from .pickles import load, open_window

NAMES = "StructuredToParameterName@@"  # the key of paddle.save's table of parameter names
_SLICES = "UnpackBigParamInfor@@"  # the key of its table of arrays in slices, of less than the 4 GiB of pickle protocol 2


# --- reading ---------------------------------------------------------------------------------------------------------


def open_files(path: str, folder: str, files: Sequence[str], weight_map: dict[str, str] | None) -> Checkpoint:
    """Read the descriptions of the tensors in `files`, which are one checkpoint; the payloads of arrays are skipped.

    path: what the user calls it. folder: where its config.json is. weight_map: tensor name -> shard name, which must agree
    with what the files hold; None without an index. Raises CheckpointError listing everything wrong.
    """
    return Checkpoint(path, folder, "np", join(path, files, weight_map, read_tensors), "pdparams")


def join(
    path: str, files: Sequence[str], weight_map: dict[str, str] | None, read: Callable[[str], list[StoredEntry]]
) -> dict[str, StoredEntry]:
    """Return the tensors of all files, by name. read: returns those of one file; weight_map: as in open_files.

    Raises CheckpointError listing everything wrong, such as a tensor that is in two files.
    """
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
    """Return the tensors of one file, in order of offset. Raises CheckpointError listing everything wrong with it."""
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
    """Return the tensor that is stored as these arrays.

    shape: None if it is one array; else the tensor's shape, and the arrays are flat slices of it, in order.
    texts: as in arrays.place. Raises MalformedError.
    """
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
        parts.append(Part(file=part.file, offset=part.offset, at=(end,), shape=part.shape, strides=(1,), text=part.text))
        end += part.shape[0]
    return assemble(name, dtype, shape, parts)


Named = dict[str, tuple[tuple[int, ...] | None, list[Array]]]  # name -> (shape if it is in slices, arrays)


def name_arrays(file: str, content: Any) -> tuple[Named, list[str]]:
    """Return a file's arrays by tensor name, and a sentence on each entry that is no tensor. Raises CheckpointError.

    content: what the file's pickle describes.
    """
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: doesn't hold a dict from names to tensors, so its weights have no names")
    content = dict(content)
    content.pop(NAMES, None)
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
            content[name] = value[1]  # paddle.save writes a tensor outside of a state dict as (its own name, array)
    remedy = "state = paddle.load({file!r}); paddle.save(state[{name!r}], 'model_state.pdparams')"
    arrays, problems = named_tensors(file, content, Array, remedy)
    return {**{name: (None, [array]) for name, array in arrays.items()}, **whole}, problems


# --- writing ---------------------------------------------------------------------------------------------------------

HELD = ("bfloat16", "float16", "float32", "float64", "bool", "int8", "uint8", "int16", "int32", "int64")
# The pickle instructions (protocol 4) that paddle.save writes; pickletools documents their codes.
_START, _STOP = b"\x80\x04}(", b"u."  # PROTO EMPTY_DICT MARK, SETITEMS STOP
_NEW_ARRAY = b"K\0\x85C\x01b\x87R"  # (.., 0) TUPLE1 b"b" TUPLE3 REDUCE
_NEW_DTYPE, _DTYPE_STATE = b"\x89\x88\x87R", b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"


def header(tensors: Sequence[Held], format: str | None) -> Header:
    """Return the pickle code around these tensors, in this order, as paddle.save writes it. format: not used here."""
    memo: dict[str, int] = {}
    pieces: list[tuple[int, bytes]] = []
    offsets: list[int] = []
    at, text = 0, _START
    for name, dtype, shape, nbytes in tensors:
        text += _text(name) + _word(memo, "numpy.core.multiarray", "_reconstruct") + _word(memo, "numpy", "ndarray")
        text += _NEW_ARRAY + b"(K\x01(" + b"".join(map(_number, shape)) + b"t"
        text += _dtype(memo, np.dtype("<f2" if dtype.name == "float16" else dtype.raw))
        text += b"\x89\x8e" + struct.pack("<Q", nbytes)  # NEWFALSE: row-major order; BINBYTES8
        pieces.append((at, text))
        offsets.append(at + len(text))
        at, text = at + len(text) + nbytes, b"tb"
    text += _text(NAMES) + b"}(" + b"".join(_text(tensor.name) * 2 for tensor in tensors) + b"u" + _STOP
    return Header((*pieces, (at, text)), tuple(offsets), at + len(text))


def problems(tensors: Sequence[Held]) -> list[str]:
    """Return a sentence on each tensor that Paddle can't load: one of an unknown dtype, or with a reserved name."""
    return [
        f"tensor {tensor.name!r} is {tensor.dtype.name}, a dtype that Paddle doesn't have: leave out --save_format pdparams"
        for tensor in tensors
        if tensor.dtype.name not in HELD
    ] + [
        f"tensor {tensor.name!r} has the name that Paddle reserves for its table of names; rename it"
        for tensor in tensors
        if tensor.name == NAMES
    ]


def _text(text: str) -> bytes:
    """Return the code that pushes a string: BINUNICODE."""
    raw = text.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def _number(number: int) -> bytes:
    """Return the code that pushes an integer."""
    return pickle.dumps(number, 2)[2:-1]  # without PROTO and STOP


def _word(memo: dict[str, int], module: str, name: str) -> bytes:
    """Return the code that pushes the object `module.name`."""
    return _once(memo, name, _text(module) + _text(name) + b"\x93")  # STACK_GLOBAL


def _dtype(memo: dict[str, int], dtype: np.dtype) -> bytes:
    """Return the code that pushes a NumPy dtype."""
    order, code = dtype.str[0], dtype.str[1:]
    if code in memo:
        return _once(memo, code, b"")
    made = _word(memo, "numpy", "dtype") + _text(code) + _NEW_DTYPE + b"(K\x03" + _text(order) + _DTYPE_STATE
    return _once(memo, code, made)


def _once(memo: dict[str, int], key: str, made: bytes) -> bytes:
    """Return `made`, and memoize what it pushes; from the second time on, the code that recalls it from pickle's memo."""
    if key in memo:
        return b"h" + bytes([memo[key]])  # BINGET
    memo[key] = len(memo)
    return made + b"\x94"  # MEMOIZE
