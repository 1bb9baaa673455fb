"""Read small files beside the weights, and strict JSON."""

from __future__ import annotations

import errno
import json
import os
import stat
from typing import Any, BinaryIO

from ..errors import CheckpointError

MAX_JSON = 100_000_000  # bytes, of a file and of a safetensors header, as in the safetensors library


def open_regular(path: str) -> BinaryIO:
    """A file, opened to be read. Raises OSError; also for what would never end, or never begin: devices and pipes."""
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115  # it is returned
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is no regular file")
    return file


def read_small(path: str, limit: int = MAX_JSON) -> bytes:
    """All of a file that stands beside weights. Raises OSError; also for one of more bytes than such a file ever has."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise OSError(errno.EFBIG, f"it is larger than {limit / 1e6:,.0f} MB, as no such file is")
        content = file.read(size + 1)
    if len(content) != size:
        raise OSError(errno.EBUSY, "it changes while it is read")
    return content


def read_json(path: str) -> Any:
    """The parsed file. Raises CheckpointError, naming the file, if it can't be read or isn't JSON with unique keys."""
    try:
        return parsed(path, read_small(path))
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read ({error.strerror})") from None


def parsed(path: str, content: bytes) -> Any:
    """What a file holds. Raises CheckpointError, naming it."""
    try:
        return parse_json(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not valid JSON ({error})") from None


def parse_json(text: bytes) -> Any:
    """Strict JSON: UTF-8 throughout, no key twice in one object. Raises ValueError (or RecursionError)."""
    return json.loads(text.decode("utf-8"), object_pairs_hook=_unique_text)


def _unique_text(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    for key, value in pairs:
        f"{key}{value if isinstance(value, str) else ''}".encode()  # half of a surrogate pair is not text
    return unique_keys(pairs)


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For json.loads: an object. Raises ValueError where json would silently take the last of equal keys."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("the same key twice")
    return result
