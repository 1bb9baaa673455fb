"""PEFT's adapters of models that tie lm_head to the embedding. PEFT trains the two apart, and an adapter of the embedding
leaves lm_head what it was; one that was told to tie them (ensure_weight_tying) holds the same for both.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from .compare import equal
from .detect import EMBEDDINGS, last_word
from .layout import HEAD, transposed
from .lora_config import scaling
from .readers import TensorEntry
from .readers.adapters import Adapter, Module
from .readers.pickles import MalformedError

Others = Sequence[tuple[str, TensorEntry]]
_APART = (
    "{}: changes the embedding and with it lm_head, which is tied to it; PEFT trained the embedding alone, so the merged"
    " model isn't quite the trained one"
)


def without_head(
    adapter: Adapter, modules: Sequence[Module], others: Others
) -> tuple[list[Module], list[tuple[str, TensorEntry]], list[str]]:
    """What readers.adapters.sort gave, less what is for lm_head, if that is the same as what is for the embedding; and a
    sentence for the user, if the embedding was trained apart from lm_head, which a tied model can't hold."""
    factors = next((module for module in modules if last_word(f"{module.name}.") in EMBEDDINGS), None)
    whole = next((entry for name, entry in others if last_word(name) in EMBEDDINGS), None)
    head_factors = next((module for module in modules if f"{module.name}.weight" == HEAD), None)
    head_whole = next((entry for name, entry in others if name == HEAD), None)
    if head_factors is None and head_whole is None:
        apart = adapter.kind == "peft" and (factors or whole) is not None and not adapter.config.get("ensure_weight_tying")
        return list(modules), list(others), [_APART.format(adapter.path)] if apart else []
    same = (head_factors is None) == (factors is None) and (head_whole is None) == (whole is None)
    if factors is not None and head_factors is not None:
        same = same and _are_alike(adapter, factors, head_factors)
    if whole is not None and head_whole is not None:
        same = same and equal(whole, head_whole)
    if not same:
        return list(modules), list(others), []
    return [one for one in modules if one is not head_factors], [one for one in others if one[0] != HEAD], []


def _are_alike(adapter: Adapter, embedding: Module, head: Module) -> bool:
    """Whether these change the embedding and lm_head alike: PEFT's factors of the one are those of the other, turned."""
    if embedding.tensors.keys() != {"embedding A", "embedding B"} or head.tensors.keys() != {"A", "B"}:
        return False
    a, b = embedding.tensors["embedding A"], embedding.tensors["embedding B"]
    with contextlib.suppress(MalformedError):
        rank = a.shape[0]
        same = scaling(adapter, embedding.name, rank) == scaling(adapter, head.name, rank)
        return same and equal(transposed(b, ""), head.tensors["A"]) and equal(transposed(a, ""), head.tensors["B"])
    return False
