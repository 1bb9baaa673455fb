"""Fit whole tensors of an adapter, which replace those of the model, to the layout that the model is stored in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...checkpoints.adapters import Adapter
from ...checkpoints.compare import equal
from ...checkpoints.names import EMBEDDINGS, HEAD, is_linear, last_word, layer_of
from ...checkpoints.tensors import Origin, TensorEntry, origins
from ...checkpoints.views import transpose
from ...errors import MalformedError
from ..tied_heads import embedding_of
from .targets import Targets

_COPY, _ORIGINAL = ".modules_to_save.", ".original_module."


def fitted(entry: TensorEntry, target: str, kind: str, targets: Targets, before: Mapping[str, TensorEntry]) -> TensorEntry:
    """Return an adapter's tensor as the checkpoint stores `target`, which it replaces: transposed if needed.

    kind: the adapter's. before: the checkpoint's tensors without the adapter. An embedding or lm_head may have another
    number of rows, for training may have added tokens. Raises MalformedError if the tensor doesn't fit.
    """
    old, given = before[target], entry
    axis = _token_axis(target, before)
    if axis is not None:
        entry = _of_tokens(entry, old, axis, kind, target)
    elif len(old.shape) == 2 == len(entry.shape):
        entry = _of_layer(entry, old, kind, target, targets)
    same = [n for n in range(len(old.shape)) if entry.shape[n : n + 1] == old.shape[n : n + 1]]
    if len(entry.shape) != len(old.shape) or set(range(len(old.shape))) - {*same} - {axis}:
        raise MalformedError(f"is {list(given.shape)}, but {target!r}, which it replaces, is {list(old.shape)}")
    if not (entry.dtype.is_float and old.dtype.is_float):
        raise MalformedError(f"is {entry.dtype.name}, which can't replace {target!r}, {old.dtype.name}")
    return entry


def _token_axis(target: str, tensors: Mapping[str, TensorEntry]) -> int | None:
    """Return the axis along which a tensor has an element per token; None if it has none."""
    if last_word(target) not in (*EMBEDDINGS, last_word(HEAD)) or layer_of(target) is not None:
        return None
    old, embedding = tensors[target], embedding_of(tensors)
    if embedding is None:
        return None
    if last_word(target) in EMBEDDINGS:
        return 0 if old.shape == embedding.shape else None
    if len(old.shape) == 1:
        return 0
    return 1 if old.shape == embedding.shape[::-1] != embedding.shape else 0


def _of_tokens(entry: TensorEntry, old: TensorEntry, axis: int, kind: str, target: str) -> TensorEntry:
    """Return an embedding or lm_head transposed if that is how it fits. Raises MalformedError if that is unknown."""
    if len(entry.shape) != 2 or len(old.shape) != 2:
        return entry
    if kind == "peft" or last_word(target) in EMBEDDINGS:  # [V, h] in any adapter, but Paddle's lm_head
        return transpose(entry, target) if axis == 1 else entry
    if entry.shape == entry.shape[::-1]:
        raise MalformedError(f"is square, so the layout of {target!r} is unknown; give a base in the adapter's own layout")
    return entry if entry.shape[1 - axis] == old.shape[1 - axis] else transpose(entry, target)


def _of_layer(entry: TensorEntry, old: TensorEntry, kind: str, target: str, targets: Targets) -> TensorEntry:
    """Return a layer's matrix transposed if the checkpoint stores it so. Raises MalformedError if that is unknown."""
    transposed = targets.stored_transposed(target)
    flip = transposed != (kind == "paddle")
    if transposed is None or (flip and not is_linear(target)):  # only shapes can tell
        if entry.shape == entry.shape[::-1]:
            remedy = "state it with --layout" if transposed is None else "give a base in the adapter's own layout"
            raise MalformedError(f"is square, so the layout of {target!r} is unknown; {remedy}")
        flip = entry.shape != old.shape
    return transpose(entry, target) if flip else entry


def without_copies(
    others: Sequence[tuple[str, TensorEntry]],
) -> tuple[list[tuple[str, TensorEntry]], dict[Origin, str]]:
    """Return the tensors without copies that PEFT saves with the same content; and why these are not read, by origin.

    Of modules_to_save in a model with more tokens, PEFT 0.21 saves X.weight, the same as X.modules_to_save.weight, and the
    base's X.original_module.weight. others: as Adapter.grouped.
    """
    plain = {name: entry for name, entry in others if _COPY not in entry.name}
    found, why = list[tuple[str, TensorEntry]](), dict[Origin, str]()
    for name, entry in others:
        if _ORIGINAL in entry.name:
            why |= dict.fromkeys(origins(entry), "PEFT's copy of what it was before training")
        elif _COPY in entry.name and name in plain and equal(entry, plain[name]):
            why |= dict.fromkeys(origins(entry), f"the same as the adapter's {name!r}")
        else:
            found.append((name, entry))
    return found, why


def is_new_head(adapter: Adapter, name: str) -> bool:
    """Return whether a tensor that the base lacks is a head that PEFT trained, such as a reward model's score."""
    saved: Any = adapter.config.get("modules_to_save")
    word = last_word(name)
    listed = isinstance(saved, list) and word in saved
    return listed and layer_of(name) is None and word not in (*EMBEDDINGS, last_word(HEAD))


def uneven_rows(before: Mapping[str, TensorEntry], tensors: Mapping[str, TensorEntry]) -> str:
    """Return what is wrong if an adapter changed the number of rows of lm_head or the embedding, and not of both.

    before, tensors: the model's without and with it. "" if nothing is wrong.
    """
    rows = {}
    for name in tensors:
        axis = _token_axis(name, before) if name in before else None
        if axis is not None and len(tensors[name].shape) == 2:
            rows[name] = tensors[name].shape[axis], before[name].shape[axis]
    changed = {name: new for name, (new, old) in rows.items() if new != old}
    left = {name: old for name, (new, old) in rows.items() if new == old}
    if changed and (left or len(set(changed.values())) > 1):
        held = ", ".join(f"{name!r} {count}" for name, count in {**changed, **left}.items())
        return (
            f"the numbers of tokens would differ ({held}): it was trained on a model with another number, and doesn't hold"
            " all of its rows; give that model as the base"
        )
    return ""
