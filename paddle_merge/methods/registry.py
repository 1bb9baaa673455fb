"""Every method that a recipe can name: mergekit's by mergekit's names, parameters and defaults, and PaddleNLP's, whose names
begin with "paddlenlp:". To add one: give its file a METHODS tuple, and name the file here.
"""

from __future__ import annotations

from typing import Any

from . import (
    arcee_fusion,
    consensus,
    iso_c,
    karcher,
    lines,
    mergekit,
    model_stock,
    multislerp,
    nearswap,
    nuslerp,
    plain,
    ram,
    sce,
    tsv,
)
from .paddlenlp import MERGE_TYPES, PREFIX, SPARSIFIERS, in_recipes, method
from .paddlenlp import METHODS as PAIRS
from .shared.method import Method

_FILES: tuple[Any, ...] = (
    plain,
    mergekit,
    nuslerp,
    multislerp,
    karcher,
    model_stock,
    nearswap,
    ram,
    sce,
    arcee_fusion,
    tsv,
    iso_c,
    consensus,
    lines,
)
NAMED: dict[str, Method] = {one.name: one for module in _FILES for one in module.METHODS}
# Parameters that recipes carry and no method here needs -> why.
IDLE = {"int8_mask": "masks take no memory here", "embed_slerp": "mergekit had it once; embeddings are merged as all else"}


def find(name: str) -> Method | None:
    """The method of this name: "ties", "paddlenlp:ties", or a pair of PaddleNLP's, "paddlenlp:trim+slerp"."""
    if not name.startswith(PREFIX):
        return NAMED.get(name)
    word = name.removeprefix(PREFIX)
    sparsifier, plus, merge_type = word.partition("+")
    pair = PAIRS.get(word) or ((sparsifier, merge_type) if plus else None)
    if pair is None or pair[0] not in (None, *SPARSIFIERS) or pair[1] not in MERGE_TYPES:
        return None
    return in_recipes(method(*pair, word))


def names() -> list[str]:
    """Of all methods, pairs aside."""
    return [*NAMED, *(PREFIX + name for name in PAIRS)]


def parameter_names() -> set[str]:
    """Of all methods, and those that are idle."""
    methods = [*NAMED.values(), *(method(*pair, name) for name, pair in PAIRS.items())]
    return {parameter.name for one in methods for parameter in one.parameters} | IDLE.keys()
