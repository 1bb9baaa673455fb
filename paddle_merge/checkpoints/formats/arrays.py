"""NumPy arrays in pickles, as Paddle writes them, and where they lie."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, TypeGuard, TypeVar

import numpy as np

from ...dtypes import BFLOAT16, DTYPES, FLOAT16, DType
from ...errors import CheckpointError, MalformedError
from ..gather import CHUNK
from ..tensors import MAX_DIMS, TEXT_STEP, Part
from ..views import row_major
from .pickles import Bytes, Standin, Text, Word

T = TypeVar("T")
# NumPy's codes. Paddle has no bfloat16 in NumPy and writes its bits as uint16; nobody has weights of uint16.
_CODES = {np.dtype(dtype.raw).str[1:]: dtype for dtype in DTYPES if dtype.name == np.dtype(dtype.raw).name}
_CODES |= {"f2": FLOAT16, "u2": BFLOAT16}
_CODE = re.compile(r"[biufcmMOSUV]\d{1,9}", re.ASCII)  # with those that can't be merged


class NumpyType(Standin):
    """numpy.dtype(code, align, copy), then its state, of which only the byte order counts."""

    def __init__(self, code: Any, align: Any, copy: Any):
        known = not isinstance(code, str) or _CODE.fullmatch(code)  # others are refused with the tensor's name
        if not (known and isinstance(align, int) and isinstance(copy, int)):
            raise MalformedError("has a dtype that NumPy doesn't write")
        self.code, self.little = code, True

    def build(self, state: Any) -> None:
        version, order, *rest = state
        if version != 3 or (self.code in _CODES and rest[3:] != [-1, -1, 0]):
            raise MalformedError("has a dtype of a state that NumPy doesn't write")
        self.little = order in ("<", "|") and rest[:3] == [None, None, None]

    def storage(self) -> DType:
        """Raises MalformedError."""
        if not (isinstance(self.code, str) and self.little and self.code in _CODES):
            raise MalformedError(f"has dtype {self.code!s:.20}, which can't be merged")
        return _CODES[self.code]


class Array(Standin):
    """An array by its place: its type, shape, and whether its first index varies fastest (fortran)."""

    def __init__(self) -> None:
        self.type: Any = None
        self.shape: Any = None
        self.fortran = False
        self.data: Any = None

    def build(self, state: Any) -> None:
        version, self.shape, self.type, fortran, self.data = state
        if type(version) is not int or version != 1 or not (isinstance(fortran, int) and fortran in (0, 1)):
            raise MalformedError("has an array of a state that NumPy doesn't write")
        self.fortran = bool(fortran)


def naturals(value: Any) -> TypeGuard[tuple[int, ...]]:
    """Whether value is a tuple of non-negative int64s, no more than a tensor has dimensions."""
    small = type(value) is tuple and len(value) <= MAX_DIMS
    return small and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _reconstruct(kind: Any, shape: Any, code: Any) -> Array:
    """An array, still empty: _reconstruct(numpy.ndarray, (0,), b"b")."""
    empty = naturals(shape) and shape == (0,)
    if not (isinstance(kind, Word) and kind.name == "numpy.ndarray" and empty and isinstance(code, Bytes)):
        raise MalformedError("makes an array as NumPy doesn't")
    return Array()


def _scalar(kind: Any, data: Any) -> Array:
    array = Array()
    array.build((1, (), kind, False, data))
    return array


def _tuple(items: Any = ()) -> tuple[Any, ...]:
    if not isinstance(items, tuple):  # a list would be copied, as often as the file says
        raise MalformedError("makes a tuple of what is none")
    return items


def _encode(text: Any, encoding: Any) -> Bytes:
    if not isinstance(text, Text) or encoding != "latin1":
        raise MalformedError("holds text that isn't latin1, as no array's bytes are")
    return Bytes(text.offset, text.nbytes, text=True)


def _no_bytes() -> Bytes:
    return Bytes(0, 0)


def nothing(*_: Any) -> None:
    """What a word does that is only ever an argument."""
    raise MalformedError("calls what isn't called in weights")


def empty_dict() -> dict[str, Any]:
    """What stands for a new OrderedDict."""
    return {}


_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")  # NumPy 1 and 2
WORDS: dict[tuple[str, str], Callable[..., Any]] = {
    **{(module, "_reconstruct"): _reconstruct for module in _MULTIARRAY},
    **{(module, "scalar"): _scalar for module in _MULTIARRAY},
    ("numpy", "ndarray"): nothing,  # only ever an argument of _reconstruct
    ("numpy", "dtype"): NumpyType,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): empty_dict,
    **{(module, "tuple"): _tuple for module in ("builtins", "__builtin__")},
    **{(module, "bytes"): _no_bytes for module in ("builtins", "__builtin__")},
}


def named(file: str, content: Any, kind: type[T], remedy: str) -> tuple[dict[str, T], list[str]]:
    """The tensors of a file by name, and sentences about what else it holds.

    remedy: Python that saves one dict of several alone, with {file} and {name} to fill in. Raises CheckpointError.
    """
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: holds no dict of names and tensors, so its weights have no names")
    dicts = [str(name)[:100] for name, value in content.items() if isinstance(value, dict)]
    if dicts:  # which of several is the model, and what the rest is for, only their writer knows
        shown = ", ".join(map(repr, dicts[:5]))
        raise CheckpointError(
            f"{file}: holds dicts within a dict ({shown}), and which one is the model isn't guessed: save it alone, as by"
            f" {remedy.format(file=file, name=dicts[0])}"
        )
    tensors: dict[str, T] = {}
    problems = []
    for name, value in content.items():
        if not isinstance(name, str) or name != name.encode("utf-8", "replace").decode():  # half of a surrogate pair
            problems.append(f"{file}: holds {str(name)[:100]!r}, which is no tensor's name")
        elif not isinstance(value, kind):
            problems.append(f"{file}: holds {str(name)[:100]!r}, which is no tensor; save the weights alone")
        else:
            tensors[str(name)] = value
    return tensors, problems


Texts = dict[tuple[int, int], tuple[int, tuple[int, ...]]]


def place(array: Array, file: str, texts: Texts) -> tuple[DType, Part]:
    """What an array of `file` is stored as, and where, as a part that is the whole. Raises MalformedError.

    texts: what index_text has found in this file so far; tied weights share their text.
    """
    if not isinstance(array.type, NumpyType) or not naturals(array.shape):
        raise MalformedError("is not a whole array")
    dtype, data = array.type.storage(), array.data
    if not isinstance(data, Bytes):
        raise MalformedError("is not a whole array")
    if data.text and (data.offset, data.nbytes) not in texts:
        texts[data.offset, data.nbytes] = index_text(file, data)
    held, text = texts[data.offset, data.nbytes] if data.text else (data.nbytes, ())
    nbytes = math.prod(array.shape) * dtype.itemsize
    if held != nbytes:
        raise MalformedError(f"is {dtype.name} {list(array.shape)}, {nbytes} bytes, but {held} are there")
    strides = row_major(array.shape[::-1])[::-1] if array.fortran else row_major(array.shape)
    return dtype, Part(file, data.offset, (0,) * len(array.shape), array.shape, strides, text)


def index_text(file: str, data: Bytes) -> tuple[int, tuple[int, ...]]:
    """How many characters there are, and Part.text. Reads all of the data, once, to memory that doesn't grow with it.

    Protocol 2 stores a byte from 128 on as two, so where an element lies is only known by reading. Raises MalformedError.
    """
    places: list[int] = []
    count, lead = 0, False  # characters so far; whether the last byte begins a character of two
    try:
        with open(file, "rb") as stream:
            stream.seek(data.offset)
            for start in range(data.offset, data.offset + data.nbytes, CHUNK):
                raw = np.frombuffer(stream.read(min(CHUNK, data.offset + data.nbytes - start)), np.uint8)
                leads, follows = (raw & 0xFE) == 0xC2, (raw & 0xC0) == 0x80
                if not len(raw) or follows[0] != lead or (follows[1:] != leads[:-1]).any() or (raw > 0xC3).any():
                    raise MalformedError("holds text that isn't latin1, as no array's bytes are")
                if ((raw & 0xFE) == 0xC0).any():
                    raise MalformedError("holds text that isn't latin1, as no array's bytes are")
                begins = np.flatnonzero(~follows)
                places += (start + begins[-count % TEXT_STEP :: TEXT_STEP]).tolist()
                count, lead = count + len(begins), bool(leads[-1])
    except OSError as error:
        raise MalformedError(f"can't be read ({error.strerror})") from None
    if lead:
        raise MalformedError("holds text that isn't latin1, as no array's bytes are")
    return count, (*places, data.offset + data.nbytes)
