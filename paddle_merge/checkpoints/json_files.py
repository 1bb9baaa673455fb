"""Read the small files of a checkpoint folder, and parse JSON strictly: UTF-8, without duplicate keys."""

from __future__ import annotations

import errno
import functools
import json
import os
import stat
from typing import Any, BinaryIO

from ..errors import CheckpointError

MAX_JSON = 100_000_000  # bytes, of a JSON file and of a safetensors header; the safetensors library has the same limit


def read_json(path: str, file_names: bool = False) -> Any:
    """Return the parsed content of a JSON file.

    file_names: whether it may hold names of files that aren't UTF-8, as os.fsdecode gives them. Raises CheckpointError,
    which names the file, if it can't be read or is not JSON with unique keys.
    """
    try:
        return parsed(path, read_small(path), file_names)
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read ({error.strerror})") from None


def open_regular(path: str) -> BinaryIO:
    """Open a file for reading. Raises OSError, also if it is a device or a pipe, on which a read might never return."""
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115  # it is returned
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is not a regular file")
    return file


def read_small(path: str, limit: int = MAX_JSON) -> bytes:
    """Return the content of a config or tokenizer file. Raises OSError, also if it is larger than `limit` bytes."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise OSError(errno.EFBIG, f"it is larger than {limit / 1e6:,.0f} MB, the most that is accepted")
        content = file.read(size + 1)
    if len(content) != size:
        raise OSError(errno.EBUSY, "it changed while it was read")
    return content


def parsed(path: str, content: bytes, file_names: bool = False) -> Any:
    """Parse the content of the JSON file `path`. Raises CheckpointError, which names the file."""
    try:
        return parse_json(content, file_names)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not valid JSON ({error})") from None


def parse_json(text: bytes, file_names: bool = False) -> Any:
    """Parse strict JSON: valid UTF-8, no key twice in one object. Raises ValueError, or RecursionError for deep nesting."""
    # Only escapes can spell text that is no valid Unicode, and headers, with many thousands of objects, have none.
    unique_text = functools.partial(_unique_text, errors="surrogateescape" if file_names else "strict")
    return json.loads(text.decode("utf-8"), object_pairs_hook=unique_text if b"\\u" in text else unique_keys)


def _unique_text(pairs: list[tuple[str, Any]], errors: str) -> dict[str, Any]:
    """Return a JSON object as unique_keys does; raise ValueError also for text that can't be encoded."""
    for key, value in pairs:
        f"{key}{value if isinstance(value, str) else ''}".encode("utf-8", errors)  # raises it for a lone surrogate
    return unique_keys(pairs)


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object as a dict: an object_pairs_hook for json.loads.

    Raises ValueError for a key that occurs twice, of which json.loads alone would silently keep the last.
    """
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("the same key twice")
    return result
