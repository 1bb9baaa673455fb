"""torch's own files since version 1.6: a zip with a pickle that names storages, and one stored member per storage.

A tensor is a view of a storage, with an offset and strides; several may share one, as tied weights do.
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
from .arrays import empty_dict, named, naturals, nothing
from .pdparams import join
from .pickles import Standin, Window, Word, load

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
# What newer dtypes are called in tensors of version 3; the others have no storage class.
_NEWER = [
    "uint16",
    "uint32",
    "uint64",
    "float8_e4m3fnuz",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
]
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_PLAIN = 0x0808  # flags: sizes stand behind a member too, its name is UTF-8


def open_files(path: str, folder: str, files: Sequence[str], weight_map: dict[str, str] | None) -> Checkpoint:
    """The checkpoint made of `files`; `weight_map` (tensor -> shard), if given, must say exactly what the files hold."""
    return Checkpoint(path, folder, "pt", join(path, files, weight_map, _read_tensors), "bin")


class Storage(Standin):
    """Bytes of the file, and what their class says they are."""

    def __init__(self, dtype: DType, offset: int, nbytes: int):
        self.dtype, self.offset, self.nbytes = dtype, offset, nbytes


class TensorStub(Standin):
    """A view of a storage, as torch._utils._rebuild_tensor_v2 takes it. offset and strides count elements."""

    def __init__(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any):
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides
        self.dtype: DType | str | None = None  # None: as the storage's

    def place(self, file: str) -> tuple[DType, Part]:
        """What it is stored as, and where, as a part that is the whole. Raises MalformedError."""
        whole = isinstance(self.storage, Storage) and naturals((self.offset,))
        if not whole or not naturals(self.shape) or not naturals(self.strides):
            raise MalformedError("is not a whole tensor")
        dtype = self.dtype or self.storage.dtype
        if isinstance(dtype, str) or len(self.shape) != len(self.strides):
            raise MalformedError(f"has dtype {dtype}, which can't be merged yet; convert it to bfloat16 first")
        end = self.offset + 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        if math.prod(self.shape) and end * dtype.itemsize > self.storage.nbytes:
            raise MalformedError(f"reaches {end * dtype.itemsize} bytes into a storage of {self.storage.nbytes}")
        offset = self.storage.offset + self.offset * dtype.itemsize
        return dtype, Part(file, offset, (0,) * len(self.shape), self.shape, self.strides)


def _newer(storage: Any, offset: Any, shape: Any, strides: Any, _grad: Any, _hooks: Any, kind: Any, *_: Any) -> TensorStub:
    """torch._utils._rebuild_tensor_v3: the storage has no type, the tensor has."""
    tensor = TensorStub(storage, offset, shape, strides)
    name = kind.name.removeprefix("torch.")
    tensor.dtype = _DTYPES.get(name, name)
    return tensor


def _parameter(data: Any, *_: Any) -> Any:
    return data


WORDS: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor_v2"): TensorStub,
    ("torch._utils", "_rebuild_tensor_v3"): _newer,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("collections", "OrderedDict"): empty_dict,
    **{(module, name): nothing for module, _, name in (full.rpartition(".") for full in _STORAGES)},
    **{("torch", name): nothing for name in (*_DTYPES, *_NEWER)},
}


def _read_tensors(file: str) -> list[StoredEntry]:
    """The tensors of one file, by offset. Raises CheckpointError listing all that is wrong with it."""
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
    tensors, problems = named(file, content, TensorStub, remedy)
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
    """A stream as zipfile reads it, but for a list of members that is said to be larger than any is."""

    def __init__(self, stream: BinaryIO):
        self.seek, self.tell, self._stream = stream.seek, stream.tell, stream

    def read(self, count: int = -1) -> bytes:
        if count > MAX_JSON:
            raise ValueError
        return self._stream.read(count)


class _Archive:
    """The zip: where its members lie. Raises MalformedError where it is none, or not as torch writes it."""

    def __init__(self, stream: BinaryIO):
        try:
            infos = zipfile.ZipFile(_Bounded(stream)).infolist()
        except OSError:
            raise
        except Exception as error:  # zipfile raises all kinds on damaged files
            raise MalformedError(f"is not a whole zip file ({type(error).__name__}): it is damaged, or cut off") from None
        self._stream = stream
        self._size = os.fstat(self._stream.fileno()).st_size
        self._members = {info.filename: info for info in infos}
        roots = [name for name in self._members if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(roots) != 1 or len(self._members) != len(infos):
            raise MalformedError("holds no data.pkl, or several: it is no file of torch's, or damaged")
        self._root = roots[0].removesuffix("data.pkl")
        if f"{self._root}byteorder" in self._members:
            start, size = self.locate("byteorder")
            self._stream.seek(start)
            if self._stream.read(min(size, 16)) != b"little":
                raise MalformedError("was written on a big-endian machine; save it again on a little-endian one")

    def locate(self, name: str) -> tuple[int, int]:
        """(offset in the file, bytes) of a member."""
        info = self._members.get(self._root + name)
        if info is None:
            raise MalformedError(f"has no {name[:100]!r} in its zip, which it refers to")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & ~_PLAIN or info.file_size != info.compress_size:
            raise MalformedError("is compressed or encrypted, as torch never does; load it with torch and save it again")
        if not 0 <= info.header_offset < self._size:
            raise MalformedError("is not a whole zip file: it is damaged, or cut off")
        self._stream.seek(info.header_offset)
        header = self._stream.read(_LOCAL_HEADER.size)
        if len(header) == _LOCAL_HEADER.size:
            mark, name_size, extra_size = _LOCAL_HEADER.unpack(header)
            start = info.header_offset + _LOCAL_HEADER.size + name_size + extra_size
            held = self._stream.read(name_size)
            if mark == b"PK\x03\x04" and held == info.orig_filename.encode() and start + info.file_size <= self._size:
                return start, info.file_size
        raise MalformedError("is not a whole zip file: it is damaged, or cut off")

    def storage(self, identity: Any) -> Storage:
        """What a persistent id of the pickle stands for: ("storage", class, member, device, elements)."""
        kind, word, key, _, count = identity
        if kind != "storage" or not isinstance(word, Word) or word.name not in _STORAGES or not isinstance(key, str):
            raise MalformedError("refers to something that is no storage of a dense tensor")
        dtype = _STORAGES[word.name]
        offset, nbytes = self.locate(f"data/{key}")
        if not naturals((count,)) or nbytes != count * dtype.itemsize:
            raise MalformedError(f"has {nbytes} bytes in storage {key[:20]!r}, which should have {count} {dtype.name}")
        return Storage(dtype, offset, nbytes)
