"""The formats that a merge can be stored in, and what their files are called."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from . import pdparams, safetensors
from .header import Header, Held


class Format(NamedTuple):
    """model: what files of the prefix "model" are called. frame: makes a file's Header of its tensors and the metadata's
    `format`. problems: sentences on tensors that such a file can't hold."""

    model: str
    header: Callable[[Sequence[Held], str | None], Header]
    problems: Callable[[Sequence[Held]], list[str]]


FORMATS = {
    "safetensors": Format("model", safetensors.header, safetensors.problems),
    "pdparams": Format("model_state", pdparams.header, pdparams.problems),
}


def shard_name(save_format: str, prefix: str, number: int, count: int) -> str:
    """Of file `number` of `count`, counted from 0: "model.safetensors", "model_state-00001-of-00002.pdparams"."""
    part = f"-{number + 1:05d}-of-{count:05d}" if count > 1 else ""
    return f"{_stem(save_format, prefix)}{part}.{save_format}"


def index_name(save_format: str, prefix: str) -> str:
    return f"{_stem(save_format, prefix)}.{save_format}.index.json"


def is_weights(name: str, save_format: str, prefix: str) -> bool:
    """Whether a merge gives a file this name: single, shard or index."""
    stem = re.escape(_stem(save_format, prefix))
    return re.fullmatch(rf"{stem}((-\d{{5}}-of-\d{{5}})?\.{save_format}|\.{save_format}\.index\.json)", name) is not None


def _stem(save_format: str, prefix: str) -> str:
    known = FORMATS.get(save_format)  # a format that doesn't exist is config's to refuse
    return known.model if known and prefix == "model" else prefix
