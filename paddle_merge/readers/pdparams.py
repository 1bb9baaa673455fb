"""Paddle's own files: pickles of NumPy arrays, as paddle.save writes them, single and sharded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..errors import CheckpointError
from . import Checkpoint, Part, TensorEntry
from .arrays import WORDS, Array, Texts, named, naturals, place
from .find import misplaced
from .parts import assemble
from .pickles import MalformedError, load, open_window

_NAMES = "StructuredToParameterName@@"  # paddle.save's table of parameter names
_SLICES = "UnpackBigParamInfor@@"  # and of arrays that protocols 2 and 3 couldn't hold in one piece


def open_files(path: str, folder: str, files: Sequence[str], weight_map: dict[str, str] | None) -> Checkpoint:
    """The checkpoint made of `files`; `weight_map` (tensor -> shard), if given, must say exactly what the files hold."""
    return Checkpoint(path, folder, "np", join(path, files, weight_map, read_tensors), "pdparams")


def join(
    path: str, files: Sequence[str], weight_map: dict[str, str] | None, read: Callable[[str], list[TensorEntry]]
) -> dict[str, TensorEntry]:
    """The tensors of all files. Raises CheckpointError listing everything wrong with them."""
    tensors: dict[str, TensorEntry] = {}
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


def read_tensors(file: str) -> list[TensorEntry]:
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


def _entry(name: str, file: str, shape: tuple[int, ...] | None, pieces: Sequence[Array], texts: Texts) -> TensorEntry:
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
