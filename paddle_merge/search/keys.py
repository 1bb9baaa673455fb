"""Word the problems of a merge for who wrote a search file: what is a flag for a merge is a key of its recipe there."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from ..errors import MergeError

KEYS = ("out_dtype", "tokenizer_source", "chat_template", "expert_alignment", "router")  # of recipes, like the flags
_FLAG = rf"(?<![^\s(])--({'|'.join(KEYS)})(?![-\w])"  # not a part of a path, such as that of a model in a cache of the hub
_WITH_VALUE = re.compile(rf"{_FLAG} (union|base|auto|match|bfloat16)\b")
_ALONE = re.compile(_FLAG)
_NO_KEY = re.compile(r"; --missing_tensors union merges (it|them) nevertheless")  # so in a search it is no remedy


def as_keys(sentence: str) -> str:
    """Return a sentence with keys in place of flags."""
    return _ALONE.sub(r"the key \1", _WITH_VALUE.sub(r"\1: \2", _NO_KEY.sub("", sentence)))


@contextlib.contextmanager
def keys_for_flags() -> Iterator[None]:
    """Raise the MergeErrors of what is run inside with keys in place of flags."""
    try:
        yield
    except MergeError as error:
        worded = [as_keys(problem) for problem in error.problems]
        if worded != error.problems:
            raise type(error)(worded) from None
        raise
