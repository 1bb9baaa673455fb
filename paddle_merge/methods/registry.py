"""Find methods by name: mergekit's, further ones from papers, and PaddleNLP's, whose names begin with "paddlenlp:".

To add a method, add its file: every module of this folder with a METHODS tuple is listed. (paddlenlp.METHODS, a dict, names
pairs of a sparsifier and a merge type.)
"""

from __future__ import annotations

import importlib
import pkgutil
import sys

from .paddlenlp import MERGE_TYPES, PREFIX, SPARSIFIERS, method
from .paddlenlp import METHODS as PAIRS
from .shared.method import Method


def _methods() -> list[Method]:
    """Return the methods of all modules of this folder, in the order in which lists show them."""
    found: list[Method] = []
    for module in pkgutil.iter_modules(sys.modules[__package__].__path__):
        if not module.ispkg and module.name not in ("registry", "paddlenlp"):
            found += getattr(importlib.import_module(f"{__package__}.{module.name}"), "METHODS", ())
    return sorted(found, key=lambda one: (one.place, one.name))


NAMED: dict[str, Method] = {one.name: one for one in _methods()}
# Parameters that recipes carry and no method here needs -> why.
IDLE = {"int8_mask": "masks take no memory here", "embed_slerp": "mergekit had it once; embeddings are merged as all else"}


def find(name: str) -> Method | None:
    """Return the method of this name: "ties", "paddlenlp:ties", or a pair of PaddleNLP's, "paddlenlp:trim+slerp"."""
    if not name.startswith(PREFIX):
        return NAMED.get(name)
    word = name.removeprefix(PREFIX)
    sparsifier, plus, merge_type = word.partition("+")
    pair = PAIRS.get(word) or ((sparsifier, merge_type) if plus else None)
    if pair is None or pair[0] not in (None, *SPARSIFIERS) or pair[1] not in MERGE_TYPES:
        return None
    return method(*pair, word)


def names() -> list[str]:
    """Return the names of all methods but pairs such as paddlenlp:trim+slerp, in the order in which lists show them."""
    return [*NAMED, *(PREFIX + name for name in PAIRS)]


def parameter_names() -> set[str]:
    """Return the names of all methods' parameters, and of those that are ignored (IDLE)."""
    methods = [*NAMED.values(), *(method(*pair, name) for name, pair in PAIRS.items())]
    return {parameter.name for one in methods for parameter in one.parameters} | IDLE.keys()
