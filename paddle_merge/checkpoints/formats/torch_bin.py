"""Read torch's .bin files, of torch 1.6 and later: zip files of a pickle, which names storages, and one member per storage.

A tensor is a view of a storage, with an offset and strides. Several tensors may share a storage, as tied weights do.
"""

from __future__ import annotations

import math
import os
import struct
import zipfile
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

from ...dtypes import BFLOAT16, DTYPES, FLOAT16, FLOAT32, FLOAT64, DType
from ...errors import CheckpointError, MalformedError
from ..json_files import MAX_JSON, open_regular
from ..tensors import Checkpoint, Part, StoredEntry
from ..views import assemble
from .arrays import empty_dict, named_tensors, naturals, never_called
from .pdparams import join
from .pickles import Window, load
from .standins import Standin, Word

_DTYPES = {dtype.name: dtype for dtype in DTYPES}
_STORAGES = {
    "torch.FloatStorage": FLOAT32,
    "torch.DoubleStorage": FLOAT64,
    "torch.HalfStorage": FLOAT16,
    "torch.BFloat16Storage": BFLOAT16,
    "torch.LongStorage": _DTYPES["int64"],
    "torch.IntStorage": _DTYPES["int32"],
    "torch.ShortStorage": _DTYPES["int16"],
    "torch.CharStorage": _DTYPES["int8"],
    "torch.ByteStorage": _DTYPES["uint8"],
    "torch.BoolStorage": _DTYPES["bool"],
    "torch.storage.UntypedStorage": _DTYPES["uint8"],
}
# Names of dtypes that have no storage class, in tensors that _rebuild_tensor_v3 makes.
_NEWER = [
    "uint16",
    "uint32",
    "uint64",
    "float8_e4m3fnuz",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
]
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_PLAIN = 0x0808  # zip flags of a plain member: its sizes are repeated behind it, its name is UTF-8


def open_files(path: str, folder: str, files: Sequence[str], weight_map: dict[str, str] | None) -> Checkpoint:
    """Read the descriptions of the tensors in `files`, which are one checkpoint; no storage is read.

    path: what the user calls it. folder: where its config.json is. weight_map: tensor name -> shard name, which must agree
    with what the files hold; None without an index. Raises CheckpointError listing everything wrong.
    """
    return Checkpoint(path, folder, "pt", join(path, files, weight_map, _read_tensors), "bin")


class Storage(Standin):
    """Hold where a storage is in the file, and the dtype of its class."""

    def __init__(self, dtype: DType, offset: int, nbytes: int):
        self.dtype, self.offset, self.nbytes = dtype, offset, nbytes


class TensorStub(Standin):
    """Hold a view of a storage: the arguments of torch._utils._rebuild_tensor_v2. offset and strides are in elements."""

    def __init__(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any):
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides
        self.dtype: DType | str | None = None  # None: the storage's

    def place(self, file: str) -> tuple[DType, Part]:
        """Return the tensor's dtype, and its location in `file` as one part. Raises MalformedError."""
        whole = isinstance(self.storage, Storage) and naturals((self.offset,))
        if not whole or not naturals(self.shape) or not naturals(self.strides):
            raise MalformedError("is an incomplete tensor: the file is damaged")
        dtype = self.dtype or self.storage.dtype
        if isinstance(dtype, str) or len(self.shape) != len(self.strides):
            raise MalformedError(f"has dtype {dtype}, which isn't supported; convert it to bfloat16 first")
        end = self.offset + 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        if math.prod(self.shape) and end * dtype.itemsize > self.storage.nbytes:
            raise MalformedError(f"reaches {end * dtype.itemsize} bytes into a storage of {self.storage.nbytes}")
        offset = self.storage.offset + self.offset * dtype.itemsize
        return dtype, Part(file, offset, (0,) * len(self.shape), self.shape, self.strides)


def _newer(storage: Any, offset: Any, shape: Any, strides: Any, _grad: Any, _hooks: Any, kind: Any, *_: Any) -> TensorStub:
    """Stand in for torch._utils._rebuild_tensor_v3: the tensor has a dtype, and its storage has none."""
    tensor = TensorStub(storage, offset, shape, strides)
    name = kind.name.removeprefix("torch.")
    tensor.dtype = _DTYPES.get(name, name)
    return tensor


def _parameter(data: Any, *_: Any) -> Any:
    """Stand in for torch._utils._rebuild_parameter: a parameter is its tensor."""
    return data


WORDS: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor_v2"): TensorStub,
    ("torch._utils", "_rebuild_tensor_v3"): _newer,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("collections", "OrderedDict"): empty_dict,
    **{(module, name): never_called for module, _, name in (full.rpartition(".") for full in _STORAGES)},
    **{("torch", name): never_called for name in (*_DTYPES, *_NEWER)},
}


def _read_tensors(file: str) -> list[StoredEntry]:
    """Return the tensors of one file, in order of offset. Raises CheckpointError listing everything wrong with it."""
    try:
        with open_regular(file) as members, open_regular(file) as code:
            archive = _Archive(members)
            start, size = archive.locate("data.pkl")
            content = load(Window(file, code, start, start + size), WORDS, archive.storage, plain=True)
    except MalformedError as error:
        raise CheckpointError(f"{file}: {error}") from None
    except OSError as error:
        raise CheckpointError(f"{file}: can't be read ({error.strerror})") from None
    remedy = "state = torch.load({file!r}); torch.save(state[{name!r}], 'pytorch_model.bin')"
    tensors, problems = named_tensors(file, content, TensorStub, remedy)
    entries = []
    for name, tensor in tensors.items():
        try:
            dtype, part = tensor.place(file)
            entries.append(assemble(name, dtype, tensor.shape, [part]))
        except MalformedError as error:
            problems.append(f"{file}: tensor {name!r} {error}")
    if problems:
        raise CheckpointError(problems)
    return sorted(entries, key=lambda entry: entry.offset)


class _Bounded:
    """Wrap a stream for zipfile; raise ValueError where a damaged directory would make it read more than MAX_JSON bytes."""

    def __init__(self, stream: BinaryIO):
        self.seek, self.tell, self._stream = stream.seek, stream.tell, stream

    def read(self, count: int = -1) -> bytes:
        if count > MAX_JSON:
            raise ValueError
        return self._stream.read(count)


class _Archive:
    """Find the members of a file that torch wrote. Raises MalformedError if it is no zip file, or unlike those of torch."""

    def __init__(self, stream: BinaryIO):
        try:
            infos = zipfile.ZipFile(_Bounded(stream)).infolist()
        except OSError:
            raise
        except Exception as error:  # zipfile raises all kinds on damaged files
            raise MalformedError(f"is not a whole zip file ({type(error).__name__}): it is damaged or truncated") from None
        self._stream = stream
        self._size = os.fstat(self._stream.fileno()).st_size
        self._members = {info.filename: info for info in infos}
        roots = [name for name in self._members if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(roots) != 1 or len(self._members) != len(infos):
            raise MalformedError("holds no data.pkl, or several: torch didn't write it, or it is damaged")
        self._root = roots[0].removesuffix("data.pkl")
        if f"{self._root}byteorder" in self._members:
            start, size = self.locate("byteorder")
            self._stream.seek(start)
            if self._stream.read(min(size, 16)) != b"little":
                raise MalformedError("was written on a big-endian machine; save it again on a little-endian one")

    def locate(self, name: str) -> tuple[int, int]:
        """Return (offset in the file, number of bytes) of a member. Raises MalformedError."""
        info = self._members.get(self._root + name)
        if info is None:
            raise MalformedError(f"refers to {name[:100]!r}, which is not in its zip")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & ~_PLAIN or info.file_size != info.compress_size:
            raise MalformedError("is compressed or encrypted, unlike torch's files; load it with torch and save it again")
        if not 0 <= info.header_offset < self._size:
            raise MalformedError("is not a whole zip file: it is damaged or truncated")
        self._stream.seek(info.header_offset)
        header = self._stream.read(_LOCAL_HEADER.size)
        if len(header) == _LOCAL_HEADER.size:
            mark, name_size, extra_size = _LOCAL_HEADER.unpack(header)
            start = info.header_offset + _LOCAL_HEADER.size + name_size + extra_size
            held = self._stream.read(name_size)
            if mark == b"PK\x03\x04" and held == info.orig_filename.encode() and start + info.file_size <= self._size:
                return start, info.file_size
        raise MalformedError("is not a whole zip file: it is damaged or truncated")

    def storage(self, identity: Any) -> Storage:
        """Return the storage of a persistent id of the pickle: ("storage", class, member, device, number of elements)."""
        kind, word, key, _, count = identity
        if kind != "storage" or not isinstance(word, Word) or word.name not in _STORAGES or not isinstance(key, str):
            raise MalformedError("refers to an object that is not the storage of a dense tensor")
        dtype = _STORAGES[word.name]
        offset, nbytes = self.locate(f"data/{key}")
        if not naturals((count,)) or nbytes != count * dtype.itemsize:
            raise MalformedError(f"has {nbytes} bytes in storage {key[:20]!r}, which should have {count} {dtype.name}")
        return Storage(dtype, offset, nbytes)
