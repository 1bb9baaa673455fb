"""Handle adapters of models that tie lm_head to the embedding, or other tensors to one another.

PEFT trains the two separately: an adapter of the embedding doesn't change lm_head. With ensure_weight_tying it saves the
same change for both.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ...checkpoints.adapters import Adapter, Module
from ...checkpoints.compare import equal
from ...checkpoints.config_json import has_language_head
from ...checkpoints.names import EMBEDDINGS, HEAD, last_word
from ...checkpoints.scaled import elements_of
from ...checkpoints.tensors import Checkpoint, TensorEntry
from ...checkpoints.views import transpose
from ...errors import MalformedError, MergeError
from ...records import record
from ..tied_heads import embedding_of
from .config import scaling, token_numbers
from .entry import Change, Lengths, LowRank, Requantised, Rows, read_from

Others = Sequence[tuple[str, TensorEntry]]  # as Adapter.grouped
Apart = list[tuple[str, TensorEntry | None]]  # (name, tensor that replaces it; None if low-rank factors change it)


def without_head(
    adapter: Adapter, modules: Sequence[Module], others: Others
) -> tuple[list[Module], list[tuple[str, TensorEntry]], Apart]:
    """Remove changes of lm_head that equal those of the embedding, for a model that ties the two.

    modules, others: as Adapter.grouped. Returns the modules and others that remain; and what changes the
    embedding but not lm_head, which a tied model can't represent.
    """
    modules = _without_equal_rows(adapter, modules)
    factors = next((one for one in modules if last_word(f"{one.name}.") in EMBEDDINGS and "rows" not in one.tensors), None)
    whole = next((entry for name, entry in others if last_word(name) in EMBEDDINGS), None)
    head_factors = next((module for module in modules if f"{module.name}.weight" == HEAD), None)
    head_whole = next((entry for name, entry in others if name == HEAD), None)
    if head_factors is None and head_whole is None:
        apart: Apart = [(factors.name, None)] if factors is not None else []
        apart += [(name, entry) for name, entry in others if last_word(name) in EMBEDDINGS]
        tied = adapter.kind != "peft" or adapter.config.get("ensure_weight_tying")
        return list(modules), list(others), [] if tied else apart
    same = (head_factors is None) == (factors is None) and (head_whole is None) == (whole is None)
    if factors is not None and head_factors is not None:
        same = same and _are_alike(adapter, factors, head_factors)
    if whole is not None and head_whole is not None:
        same = same and equal(whole, head_whole)
    if not same:
        return list(modules), list(others), []
    return [one for one in modules if one is not head_factors], [one for one in others if one[0] != HEAD], []


@record(frozen=True)
class Following:
    """Say what lm_head takes over from the embedding in a model that was tied, and that a merge unties.

    rows: rows of single tokens. base: the tensor that an adapter stores as the base's, of one of the two. others: other
    changes. embedding: its name.
    """

    rows: bool = False
    base: bool = False
    others: bool = False
    embedding: str = ""


def following(
    adapter: Adapter, checkpoint: Checkpoint, config: Mapping[str, Any], modules: Sequence[Module], others: Others
) -> Following:
    """Return what lm_head of an untied model takes over from the embedding, because it was tied in training.

    config: the model's own, which doesn't say that it is untied. modules, others: as Adapter.grouped.
    """
    head, embedding = checkpoint.tensors.get(HEAD), embedding_of(checkpoint.tensors)
    if config.get("tie_word_embeddings") is False or head is None or embedding is None:
        return Following()
    if _place(head)[:2] != _place(embedding)[:2]:
        return Following()
    own = [module for module in modules if f"{module.name}.weight" == HEAD]
    ties = adapter.kind != "peft" or bool(adapter.config.get("ensure_weight_tying"))
    has_rows, has_others = (any(("rows" in one.tensors) == rows for one in own) for rows in (True, False))
    whole = {last_word(name) for name, _ in others}
    has_others = has_others or last_word(HEAD) in whole
    return Following(
        rows=adapter.kind == "peft" and not has_rows,
        base=(last_word(HEAD) in whole) != (not whole.isdisjoint(EMBEDDINGS)),
        others=ties and not has_others,
        embedding=next(name for name, entry in checkpoint.tensors.items() if entry is embedding),
    )


def turned(change: Change) -> Change:
    """Return the change of a matrix as that of its transpose. Raises MalformedError."""
    if isinstance(change, Lengths | Rows | Requantised):
        return dataclasses.replace(change, axis=1 - change.axis)
    left, right, middle = change.right, change.left, change.middle
    if right is None:
        raise MalformedError("changes a vector, which can't be transposed")
    middle = transpose(middle, middle.name) if middle is not None else None
    return LowRank(transpose(left, left.name), transpose(right, right.name), change.scale, middle)


def _without_equal_rows(adapter: Adapter, modules: Sequence[Module]) -> list[Module]:
    """Remove rows of lm_head that equal those of the embedding. (PEFT lets lm_head follow the embedding's rows.)"""
    rows = [module for module in modules if "rows" in module.tensors]
    head = next((module for module in rows if f"{module.name}.weight" == HEAD), None)
    other = next((module for module in rows if last_word(f"{module.name}.") in EMBEDDINGS), None)
    if head is None or other is None or not equal(head.tensors["rows"], other.tensors["rows"]):
        return list(modules)
    with contextlib.suppress(MalformedError):
        if token_numbers(adapter, head.name) != token_numbers(adapter, other.name):
            return list(modules)
    return [module for module in modules if module is not head]


def trains_apart(adapter: Adapter, checkpoint: Checkpoint, config: Mapping[str, Any]) -> bool:
    """Return whether an adapter of a tied model makes lm_head and the embedding differ, as PEFT can train them.

    config: the model's. Raises WorkError if tensors can't be compared.
    """
    if not has_language_head(config):
        return False
    try:
        modules, others, apart = without_head(adapter, *adapter.grouped)
    except MergeError:  # folding it says why
        return False
    if any(f"{module.name}.weight" == HEAD for module in modules) or any(name == HEAD for name, _ in others):
        return True
    embedding = embedding_of(checkpoint.tensors)
    return any(entry is None or (embedding is not None and not equal(entry, embedding)) for _, entry in apart)


class Sharers:
    """Find tensors of a checkpoint that share their values with others, so that a change of one would have to change all."""

    def __init__(self, checkpoint: Checkpoint, config: Mapping[str, Any]):
        self._tensors, self._tied = checkpoint.tensors, config.get("tie_word_embeddings")
        places: dict[Any, list[str]] = {}
        # of each tensor the names of all that are stored in the same bytes
        self._names = {name: places.setdefault(_place(entry), []) for name, entry in self._tensors.items()}
        for name, names in self._names.items():
            names.append(name)

    def of(self, target: str) -> list[str]:
        """Return the names of the other tensors that share the values of `target`.

        These are tensors stored in the same bytes, as tied ones are in torch's files; and of lm_head and the embedding the
        other one, if both are equal and config.json doesn't say whether they are tied. Raises WorkError.
        """
        entry, head = self._tensors[target], self._tensors.get(HEAD)
        found = [name for name in self._names[target] if name != target and entry.nbytes]
        if self._tied is False:  # whatever is stored once, a loader makes two of it
            found = [name for name in found if HEAD not in (name, target)]
        if not isinstance(self._tied, bool) and head is not None and (target == HEAD or last_word(target) in EMBEDDINGS):
            words = [name for name in self._tensors if last_word(name) in EMBEDDINGS and target in (name, HEAD)]
            found += [HEAD if name == target else name for name in words if equal(self._tensors[name], head)]
        return found


def _place(entry: TensorEntry) -> tuple[str, int, tuple[int, ...]]:
    """Return a key that is the same for tensors that are stored in the same bytes."""
    read = elements_of(read_from(entry))
    return read.file, read.offset, entry.shape


def _are_alike(adapter: Adapter, embedding: Module, head: Module) -> bool:
    """Return whether two modules change the embedding and lm_head in the same way.

    PEFT's factors of lm_head are then those of the embedding, exchanged and transposed.
    """
    if embedding.tensors.keys() != {"embedding A", "embedding B"} or head.tensors.keys() != {"A", "B"}:
        return False
    a, b = embedding.tensors["embedding A"], embedding.tensors["embedding B"]
    with contextlib.suppress(MalformedError):
        rank = a.shape[0]
        same = scaling(adapter, embedding.name, rank) == scaling(adapter, head.name, rank)
        return same and equal(transpose(b, ""), head.tensors["A"]) and equal(transpose(a, ""), head.tensors["B"])
    return False
