"""Read torch's .bin files: zip files of a pickle, which names storages, and one member per storage.

A tensor is a view of a storage, with an offset and strides. Several tensors may share a storage, as tied weights do.
Files of torch before 1.6 have another frame around the same pickle: torch_legacy.py reads it.
"""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Sequence
from typing import Any, BinaryIO

from ...errors import CheckpointError, MalformedError
from ..json_files import MAX_JSON, open_regular
from ..parts import assemble
from ..tensors import Checkpoint, StoredEntry
from . import torch_legacy
from .arrays import named_tensors
from .folder import is_zip
from .pdparams import join
from .pickles import Window, load
from .torch_words import WORDS, Storage, Stub, claimed

_LOCAL_HEADER = struct.Struct("<4s22xHH")
_PLAIN = 0x0808  # zip flags of a plain member: its sizes are repeated behind it, its name is UTF-8


def open_files(path: str, folder: str, files: Sequence[str], weight_map: dict[str, str] | None) -> Checkpoint:
    """Read the descriptions of the tensors in `files`, which are one checkpoint; no storage is read.

    path: what the user calls it. folder: where its config.json is. weight_map: tensor name -> shard name, which must agree
    with what the files hold; None without an index. Raises CheckpointError listing everything wrong.
    """
    return Checkpoint(path, folder, "pt", join(path, files, weight_map, _read_tensors), "bin")


def _read_tensors(file: str) -> list[StoredEntry]:
    """Return the tensors of one file, in order of offset. Raises CheckpointError listing everything wrong with it."""
    content = _read_zip(file) if is_zip(file) else torch_legacy.read(file)
    remedy = "state = torch.load({file!r}); torch.save(state[{name!r}], 'pytorch_model.bin')"
    tensors, problems = named_tensors(file, content, Stub, remedy)
    entries = []
    for name, tensor in tensors.items():
        try:
            dtype, part = tensor.place(file)
            entries.append(assemble(name, dtype, part.shape, [part]))
        except MalformedError as error:
            problems.append(f"{file}: tensor {name!r} {error}")
    if problems:
        raise CheckpointError(problems)
    return sorted(entries, key=lambda entry: entry.offset)


def _read_zip(file: str) -> Any:
    """Return what the pickle in a zip file of torch describes. Raises CheckpointError."""
    try:
        with open_regular(file) as members, open_regular(file) as code:
            archive = _Archive(members)
            start, size = archive.locate("data.pkl")
            return load(Window(file, code, start, start + size), WORDS, archive.storage, plain=True)
    except MalformedError as error:
        raise CheckpointError(f"{file}: {error}") from None
    except OSError as error:
        raise CheckpointError(f"{file}: can't be read ({error.strerror})") from None


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
        dtype, claims = claimed(kind, word, count)
        if not isinstance(key, str):
            raise MalformedError("refers to a storage without a name")
        offset, nbytes = self.locate(f"data/{key}")
        if nbytes != claims:
            raise MalformedError(f"has {nbytes} bytes in storage {key[:20]!r}, which should have {claims}")
        return Storage(dtype, offset, nbytes)
