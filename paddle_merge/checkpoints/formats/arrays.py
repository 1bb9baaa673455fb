"""Read NumPy arrays in pickles, as Paddle writes them: their dtype, their shape, and where in the file their bytes are."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, TypeGuard, TypeVar

import numpy as np

from ...dtypes import BFLOAT16, DTYPES, FLOAT16, DType
from ...errors import CheckpointError, MalformedError
from ..gather import CHUNK
from ..parts import row_major
from ..tensors import MAX_DIMS, TEXT_STEP, Part
from .standins import Bytes, Standin, Text, Word

T = TypeVar("T")
# NumPy's type codes. NumPy has no bfloat16, so Paddle writes its bits as uint16; no weights are uint16.
CODES = {np.dtype(dtype.raw).str[1:]: dtype for dtype in DTYPES if dtype.name == np.dtype(dtype.raw).name}
CODES |= {"f2": FLOAT16, "u2": BFLOAT16}
_CODE = re.compile(r"[biufcmMOSUV]\d{1,9}", re.ASCII)  # all codes that NumPy writes, supported here or not


class NumpyType(Standin):
    """Stand in for numpy.dtype(code, align, copy). Of its state only the byte order is used."""

    def __init__(self, code: Any, align: Any, copy: Any):
        known = not isinstance(code, str) or _CODE.fullmatch(code)  # storage() refuses others, naming the tensor
        if not (known and isinstance(align, int) and isinstance(copy, int)):
            raise MalformedError("has a dtype that NumPy doesn't write")
        self.code, self.little = code, True

    def build(self, state: Any) -> None:
        """Set the byte order. Raises MalformedError."""
        version, order, *rest = state
        if version != 3 or (self.code in CODES and rest[3:] != [-1, -1, 0]):
            raise MalformedError("has a dtype with a state that NumPy doesn't write")
        self.little = order in ("<", "|") and rest[:3] == [None, None, None]

    def storage(self) -> DType:
        """Return the storage dtype. Raises MalformedError if it isn't supported."""
        if not (isinstance(self.code, str) and self.little and self.code in CODES):
            raise MalformedError(f"has dtype {self.code!s:.20}, which can't be merged")
        return CODES[self.code]


class Array(Standin):
    """Stand in for an array. type: its NumpyType. data: its Bytes. fortran: whether it is stored in column-major order."""

    def __init__(self) -> None:
        self.type: Any = None
        self.shape: Any = None
        self.fortran = False
        self.data: Any = None

    def build(self, state: Any) -> None:
        """Set everything, from the state that numpy.ndarray.__reduce__ gives. Raises MalformedError."""
        version, self.shape, self.type, fortran, self.data = state
        if type(version) is not int or version != 1 or not (isinstance(fortran, int) and fortran in (0, 1)):
            raise MalformedError("has an array with a state that NumPy doesn't write")
        self.fortran = bool(fortran)


def naturals(value: Any) -> TypeGuard[tuple[int, ...]]:
    """Return whether value is a tuple of non-negative int64s, no longer than a shape can be."""
    small = type(value) is tuple and len(value) <= MAX_DIMS
    return small and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _reconstruct(kind: Any, shape: Any, code: Any) -> Array:
    """Return an array without state yet, for NumPy's _reconstruct(numpy.ndarray, (0,), b"b")."""
    empty = naturals(shape) and shape == (0,)
    if not (isinstance(kind, Word) and kind.name == "numpy.ndarray" and empty and isinstance(code, Bytes)):
        raise MalformedError("makes an array in a way that NumPy doesn't")
    return Array()


def _scalar(kind: Any, data: Any) -> Array:
    """Return an array of shape (), for NumPy's scalar(dtype, bytes)."""
    array = Array()
    array.build((1, (), kind, False, data))
    return array


def _tuple(items: Any = ()) -> tuple[Any, ...]:
    """Return the tuple that tuple() is called with. Raises MalformedError for a list, which could be copied many times."""
    if not isinstance(items, tuple):
        raise MalformedError("calls tuple() with an object that is not a tuple")
    return items


def _encode(text: Any, encoding: Any) -> Bytes:
    """Return the byte string of _codecs.encode(text, "latin1"), as protocol 2 stores it. Raises MalformedError."""
    if not isinstance(text, Text) or encoding != "latin1":
        raise MalformedError(_NOT_LATIN1)
    return Bytes(text.offset, text.nbytes, text=True)


def _no_bytes() -> Bytes:
    """Return an empty byte string, for bytes()."""
    return Bytes(0, 0)


def never_called(*_: Any) -> None:
    """Raise MalformedError, for names that files of weights have as arguments of calls, and never call."""
    raise MalformedError("calls an object that files of weights never call")


def empty_dict() -> dict[str, Any]:
    """Return an empty dict, for a new OrderedDict."""
    return {}


_NOT_LATIN1 = "holds text that isn't latin1, so it can't be the bytes of an array"
_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")  # NumPy 1 and 2
WORDS: dict[tuple[str, str], Callable[..., Any]] = {
    **{(module, "_reconstruct"): _reconstruct for module in _MULTIARRAY},
    **{(module, "scalar"): _scalar for module in _MULTIARRAY},
    ("numpy", "ndarray"): never_called,  # only ever an argument of _reconstruct
    ("numpy", "dtype"): NumpyType,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): empty_dict,
    **{(module, "tuple"): _tuple for module in ("builtins", "__builtin__")},
    **{(module, "bytes"): _no_bytes for module in ("builtins", "__builtin__")},
}


def named_tensors(file: str, content: Any, kind: type[T], remedy: str) -> tuple[dict[str, T], list[str]]:
    """Return the tensors of a file by name, and a sentence on each entry that is no tensor.

    content: what the file's pickle describes. kind: the class of the stand-ins for tensors. remedy: Python code that saves
    one dict of several in a file of its own, with {file} and {name} to fill in. Raises CheckpointError.
    """
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: doesn't hold a dict from names to tensors, so its weights have no names")
    if any(isinstance(name, Standin) for name in content):
        raise CheckpointError(f"{file}: holds a dict whose keys are not names; save the weights alone")
    dicts = [str(name)[:100] for name, value in content.items() if isinstance(value, dict)]
    if dicts:  # only who wrote the file knows which of them is the model
        shown = ", ".join(map(repr, dicts[:5]))
        raise CheckpointError(
            f"{file}: holds dicts within a dict ({shown}), and it isn't known which one is the model: save that one alone,"
            f" for example with {remedy.format(file=file, name=dicts[0])}"
        )
    tensors: dict[str, T] = {}
    problems = []
    for name, value in content.items():
        if not isinstance(name, str) or name != name.encode("utf-8", "replace").decode():  # a lone surrogate
            problems.append(f"{file}: holds {str(name)[:100]!r}, which is not a valid name of a tensor")
        elif not isinstance(value, kind):
            problems.append(f"{file}: holds {str(name)[:100]!r}, which is not a tensor; save the weights alone")
        else:
            tensors[str(name)] = value
    return tensors, problems


Texts = dict[tuple[int, int], tuple[int, tuple[int, ...]]]  # (offset, bytes) of a text -> what index_text returns for it


def place(array: Array, file: str, texts: Texts) -> tuple[DType, Part]:
    """Return an array's dtype, and its location in `file` as one part. Raises MalformedError.

    texts: results of index_text for this file so far, to which this call may add; tied weights share one text.
    """
    if not isinstance(array.type, NumpyType) or not naturals(array.shape):
        raise MalformedError("is an incomplete array: the file is damaged")
    dtype, data = array.type.storage(), array.data
    if not isinstance(data, Bytes):
        raise MalformedError("is an incomplete array: the file is damaged")
    if data.text and (data.offset, data.nbytes) not in texts:
        texts[data.offset, data.nbytes] = index_text(file, data)
    held, text = texts[data.offset, data.nbytes] if data.text else (data.nbytes, ())
    nbytes = math.prod(array.shape) * dtype.itemsize
    if held != nbytes:
        raise MalformedError(f"is {dtype.name} {list(array.shape)}, {nbytes} bytes, but the file has {held} for it")
    strides = row_major(array.shape[::-1])[::-1] if array.fortran else row_major(array.shape)
    return dtype, Part(
        file=file, offset=data.offset, at=(0,) * len(array.shape), shape=array.shape, strides=strides, text=text
    )


def index_text(file: str, data: Bytes) -> tuple[int, tuple[int, ...]]:
    """Return the number of characters of a text, and the value of Part.text for it. Raises MalformedError.

    Protocol 2 stores each byte above 127 as two, so the offset of an element is only known after all before it has been
    read. This reads the text once, CHUNK bytes at a time.
    """
    places: list[int] = []
    count, lead = 0, False  # characters so far; whether the last byte is the first of a character's two
    try:
        with open(file, "rb") as stream:
            stream.seek(data.offset)
            for start in range(data.offset, data.offset + data.nbytes, CHUNK):
                raw = np.frombuffer(stream.read(min(CHUNK, data.offset + data.nbytes - start)), np.uint8)
                leads, follows = (raw & 0xFE) == 0xC2, (raw & 0xC0) == 0x80
                if not len(raw) or follows[0] != lead or (follows[1:] != leads[:-1]).any() or (raw > 0xC3).any():
                    raise MalformedError(_NOT_LATIN1)
                if ((raw & 0xFE) == 0xC0).any():
                    raise MalformedError(_NOT_LATIN1)
                begins = np.flatnonzero(~follows)
                places += (start + begins[-count % TEXT_STEP :: TEXT_STEP]).tolist()
                count, lead = count + len(begins), bool(leads[-1])
    except OSError as error:
        raise MalformedError(f"can't be read ({error.strerror})") from None
    if lead:
        raise MalformedError(_NOT_LATIN1)
    return count, (*places, data.offset + data.nbytes)
