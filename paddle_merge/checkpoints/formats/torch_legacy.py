"""Read the frame of .bin files of torch before 1.6 (torch.save with _use_new_zipfile_serialization=False writes it today).

Five pickles follow each other: a magic number, a version, facts about the machine, the content, and the names of storages.
Behind them are the storages, in the order of these names: the number of elements (int64), and the elements, little-endian on
all machines.
"""

from __future__ import annotations

import struct
from typing import Any

from ...errors import CheckpointError, MalformedError
from .arrays import naturals
from .pickles import Window, load_next, open_window
from .torch_words import WORDS, Storage, claimed

_VERSION = 1001
Key = str | int  # of a storage; torch before 0.4 used numbers


def read(file: str) -> Any:
    """Return what the content's pickle describes, with the location of every storage. Raises CheckpointError."""
    with open_window(file) as window:
        load_next(window, {})  # the magic number, by which the format was recognised
        if load_next(window, {}) != _VERSION:
            raise CheckpointError(
                f"{file}: has a version of torch's format that isn't known; load it with torch and save it again"
            )
        load_next(window, {})
        storages = _Storages()
        content = load_next(window, WORDS, storages.storage, plain=True)
        keys = load_next(window, {})
        try:
            storages.locate(keys, window)
        except MalformedError as error:
            raise CheckpointError(f"{file}: {error}") from None
        except OSError as error:
            raise CheckpointError(f"{file}: can't be read ({error.strerror})") from None
    return content


class _Storages:
    """Hold the storages that the content refers to; where they are is known only behind it."""

    def __init__(self) -> None:
        self._whole: dict[Key, tuple[Storage, int]] = {}  # key -> (storage, number of elements)
        self._views: dict[tuple[Key, Key], tuple[Storage, int]] = {}  # (key, key of a view) -> (view, first byte of it)

    def storage(self, identity: Any) -> Storage:
        """Return the storage of a persistent id: ("storage", class, key, device, elements, None or a view of it).

        A view is (key, first element, elements). Raises MalformedError.
        """
        kind, word, key, _, count, view = identity
        dtype, claims = claimed(kind, word, count)
        if not _is_key(key):
            raise MalformedError("refers to a storage without a name")
        whole, _ = self._whole.setdefault(key, (Storage(dtype, 0, claims), count))
        if (whole.dtype, whole.nbytes) != (dtype, claims):
            raise MalformedError(f"describes storage {key!s:.20} in two ways")
        if view is None:
            return whole
        name, first, size = view
        _, start = claimed(kind, word, first)
        _, nbytes = claimed(kind, word, size)
        if not _is_key(name) or start + nbytes > claims:
            raise MalformedError(f"has a view that reaches beyond storage {key!s:.20}")
        return self._views.setdefault((key, name), (Storage(dtype, 0, nbytes), start))[0]

    def locate(self, keys: Any, window: Window) -> None:
        """Set the offset of every storage. keys: of all storages, in the order of the file. Raises MalformedError."""
        if not isinstance(keys, list) or not all(map(_is_key, keys)) or len(set(keys)) != len(keys):
            raise MalformedError("has a table of storages that torch doesn't write: it is damaged")
        if set(keys) != self._whole.keys():
            raise MalformedError("has other storages than its tensors refer to: it is damaged")
        for key in keys:
            storage, count = self._whole[key]
            (held,) = struct.unpack("<q", window.read(8))
            if held != count:
                raise MalformedError(f"has {held} elements in storage {key!s:.20}, which should have {count}")
            storage.offset = window.skip(storage.nbytes)
        if window.at != window.stop:
            raise MalformedError("has bytes after its last storage: it is damaged")
        for (key, _), (view, start) in self._views.items():
            view.offset = self._whole[key][0].offset + start


def _is_key(value: Any) -> bool:
    return isinstance(value, str) or naturals((value,))
