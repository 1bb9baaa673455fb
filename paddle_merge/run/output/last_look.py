"""Open finished files of weights as loaders do, and compare them with what was to be written, before a merge counts as done.

Only headers are read. A safetensors file is opened by the safetensors library; a .pdparams file by this package's reader,
which runs none of its pickle, and then by paddle.load, or by the calls of pickle and NumPy that paddle.load consists of.
"""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from ...backends.engine import import_paddle
from ...checkpoints.formats.any import open_file
from ...checkpoints.formats.arrays import CODES
from ...checkpoints.formats.header import Held
from ...checkpoints.formats.pdparams import NAMES
from ...errors import CheckpointError, OutputError
from ...parsing import tensors_named

Headers = Mapping[str, tuple[str, tuple[int, ...]]]  # name -> (dtype, as safetensors calls it; shape)
_PAYLOAD = 1 << 16  # bytes; what is read at once and has more is the elements of an array


def look(files: Mapping[str, Sequence[Held]], save_format: str, paddle: bool = False) -> None:
    """Compare the names, dtypes and shapes in files with what they are to hold.

    files: path -> its tensors. save_format: "safetensors" or "pdparams". paddle: whether to import Paddle for the latter; it
    is used, too, if it has been imported. Raises OutputError.
    """
    for path, tensors in files.items():
        wanted = {tensor.name: (tensor.dtype.tag, tuple(tensor.shape)) for tensor in tensors}
        readers = [_by_safetensors]
        if save_format != "safetensors":  # first without running the pickle
            readers = [_by_ours, _by_paddle if paddle or "paddle" in sys.modules else _by_pickle]
        for reader in readers:
            found = reader(path)
            if wrong := [name for name in {**wanted, **found} if found.get(name) != wanted.get(name)]:
                raise OutputError(
                    f"{path} as it was written doesn't hold what the plan says of {tensors_named(wrong)}: the disk may be"
                    " failing; if it isn't, this is a fault of paddle_merge: please report it"
                )


def _by_safetensors(path: str) -> Headers:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
            return {name: (one.get_dtype(), tuple(one.get_shape())) for name, one in slices.items()}
    except (SafetensorError, OSError) as error:
        raise OutputError(f"{path}: was written, but the safetensors library can't open it ({error})") from None


def _by_ours(path: str) -> Headers:
    try:
        return {name: (entry.dtype.tag, entry.shape) for name, entry in open_file(path).tensors.items()}
    except CheckpointError as error:
        raise OutputError(f"{path}: was written, but can't be read again ({error})") from None


def _by_paddle(path: str) -> Headers:
    """Return what paddle.load finds in a .pdparams file."""
    return _arrays(path, lambda file: import_paddle().load(file, return_numpy=True))


def _by_pickle(path: str) -> Headers:
    """Return what paddle.load would find in a .pdparams file: it calls pickle.load, and needs the table of names."""

    def load(file: _Skipping) -> dict[str, Any]:
        content = pickle.load(file, encoding="latin1")
        table = content.pop(NAMES)
        return {key: content[key] for key in {**table, **content}}

    return _arrays(path, load)


def _arrays(path: str, load: Any) -> Headers:
    """Return the names, dtypes and shapes of the arrays that `load` makes of a file."""
    try:
        with _Skipping(path) as file:
            content = load(file)
            return {name: (CODES[array.dtype.str[1:]].tag, array.shape) for name, array in content.items()}
    except MemoryError:  # where memory that is reserved and never used isn't allowed; this package's reader did look
        return _by_ours(path)
    except Exception as error:  # pickles can raise anything
        raise OutputError(f"{path}: was written, but paddle.load can't open it ({type(error).__name__}: {error})") from None


class _Skipping(io.BytesIO):
    """Read a file, but skip the elements of arrays: pickle reserves memory for them and hands it to `readinto`, which leaves
    it untouched, so the operating system never provides it. It is a BytesIO because paddle.load takes paths and BytesIOs."""

    def __init__(self, path: str):
        super().__init__()
        self._file = open(path, "rb")  # noqa: SIM115 (closed by close)
        self._size = self._file.seek(0, io.SEEK_END)
        self._file.seek(0)

    def read(self, count: int | None = -1, /) -> bytes:
        return self._file.read(count)

    def readline(self, count: int | None = -1, /) -> bytes:
        return self._file.readline(-1 if count is None else count)

    def readinto(self, buffer: Any, /) -> int:
        count = memoryview(buffer).nbytes
        if count <= _PAYLOAD:
            return self._file.readinto(buffer)
        start = self._file.tell()
        return self._file.seek(min(start + count, self._size)) - start

    def close(self) -> None:
        self._file.close()
        super().close()
