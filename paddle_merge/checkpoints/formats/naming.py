"""List the formats in which a merge can be saved, and name their files."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from . import pdparams, safetensors
from .header import Header, Held


class Format(NamedTuple):
    """Describe a format that can be written.

    model: how the names of files with the prefix "model" begin.
    header: function that makes a file's Header from its tensors and the value of `format` in safetensors metadata.
    problems: function that returns a sentence on each tensor that a file of this format can't hold.
    """

    model: str
    header: Callable[[Sequence[Held], str | None], Header]
    problems: Callable[[Sequence[Held]], list[str]]


FORMATS = {
    "safetensors": Format("model", safetensors.header, safetensors.problems),
    "pdparams": Format("model_state", pdparams.header, pdparams.problems),
}


def shard_name(save_format: str, prefix: str, number: int, count: int) -> str:
    """Return the name of file `number` of `count`, counted from 0.

    "model.safetensors" for one file; "model_state-00001-of-00002.pdparams" for the first of two shards.
    """
    part = f"-{number + 1:05d}-of-{count:05d}" if count > 1 else ""
    return f"{_stem(save_format, prefix)}{part}.{save_format}"


def index_name(save_format: str, prefix: str) -> str:
    """Return the name of the index file that maps tensors to shards."""
    return f"{_stem(save_format, prefix)}.{save_format}.index.json"


def is_weights(name: str, save_format: str, prefix: str) -> bool:
    """Return whether a merge may write a file of this name, as a single file, a shard or an index."""
    stem = re.escape(_stem(save_format, prefix))
    return re.fullmatch(rf"{stem}((-\d{{5}}-of-\d{{5}})?\.{save_format}|\.{save_format}\.index\.json)", name) is not None


def _stem(save_format: str, prefix: str) -> str:
    """Return how the names of files of this format and prefix begin."""
    known = FORMATS.get(save_format)  # None for an unknown format, which the checks of the config report
    return known.model if known and prefix == "model" else prefix
