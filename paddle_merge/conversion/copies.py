"""Give a model the tensors that it doesn't store because its loader makes them copies of others.

T5's files hold the embedding as shared, encoder.embed_tokens, decoder.embed_tokens and lm_head, or only under one of these
names, as libraries of different age write them. What shows that a tensor is a copy is config.json, for lm_head of a model
that ties it (tied_heads.py); and for others another input, which stores the same values under both names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from ..checkpoints.compare import equal
from ..checkpoints.config_json import read_config
from ..checkpoints.files import Files
from ..checkpoints.names import TOKEN_EMBEDDINGS, last_word, layer_of
from ..checkpoints.tensors import Checkpoint, StoredEntry, TensorEntry
from ..parsing import tensors_named

_SHARED = "shared"  # last word of the embedding that encoder and decoder share, whatever tie_word_embeddings says
_PROBE = 1 << 16  # elements that are read to see whether a tensor has more than one value


def with_copy(checkpoint: Checkpoint, name: str, original: TensorEntry) -> Checkpoint:
    """Return a checkpoint with a tensor more: `original`, a view of what it stores, under another name."""
    return dataclasses.replace(checkpoint, tensors={**checkpoint.tensors, name: original.renamed(name)})


def with_copies(inputs: Sequence[Checkpoint]) -> tuple[tuple[Checkpoint, ...], list[str]]:
    """Return the inputs with the copies that they don't store and others do, and a sentence on each that has some.

    A copy has a row per token. In every input that stores it and its original, the two are equal. The config.json of the
    input that lacks it doesn't say that embeddings are untied, unless all of them are those of a `shared` one. Raises
    WorkError if values can't be compared.
    """
    found, notes = [], list[str]()
    per_token = dict.fromkeys(name for one in inputs for name in _per_token(one.tensors))
    for one in inputs:
        made: dict[str, list[str]] = {}  # original -> its copies
        completed, untied = one, read_config(one.folder).get("tie_word_embeddings") is False
        for name in per_token:
            if name not in one.tensors and (original := _original(name, one, inputs, untied)) is not None:
                completed = with_copy(completed, name, one.tensors[original])
                made.setdefault(original, []).append(name)
        found.append(completed)
        notes += [
            f"{one.path}: {tensors_named(names)} {'is' if len(names) == 1 else 'are'} not stored, and taken to be"
            f" {original!r}, with which {'it is' if len(names) == 1 else 'they are'} equal in other inputs"
            for original, names in made.items()
        ]
    return tuple(found), notes


def _per_token(tensors: Mapping[str, TensorEntry]) -> list[str]:
    """Return the names of the tensors of floats, outside of layers, that have as many rows as an embedding."""
    outside = {name: entry for name, entry in tensors.items() if layer_of(name) is None and entry.dtype.is_float}
    rows = {
        entry.shape[0] for name, entry in outside.items() if last_word(name) in TOKEN_EMBEDDINGS and len(entry.shape) == 2
    }
    return [name for name, entry in outside.items() if entry.shape and entry.shape[0] in rows]


def _original(name: str, one: Checkpoint, inputs: Sequence[Checkpoint], untied: bool) -> str | None:
    """Return the tensor of an input of which the tensor `name`, which it lacks, is a copy; None if none is known to be.

    untied: whether its config.json says that embeddings are not tied.
    """
    holders = [other for other in inputs if name in other.tensors]
    possible = [other for other in _per_token(one.tensors) if not untied or _always_shared(name, other)]
    matching = [other for other in possible if _are_copies(name, other, holders)]
    matching = [other for other in matching if last_word(other) in TOKEN_EMBEDDINGS] or matching
    if not matching or not all(equal(one.tensors[matching[0]], one.tensors[other]) for other in matching[1:]):
        return None
    return matching[0]


def _always_shared(name: str, other: str) -> bool:
    """Return whether two tensors are embeddings of which one is named as that of encoder and decoder."""
    words = {last_word(name), last_word(other)}
    return words <= set(TOKEN_EMBEDDINGS) and _SHARED in words


def _are_copies(name: str, other: str, holders: Sequence[Checkpoint]) -> bool:
    """Return whether two tensors are equal in all inputs that have both, at least one; a single value proves nothing."""
    pairs = [(one.tensors[name], one.tensors[other]) for one in holders if other in one.tensors]
    return (
        all(first.shape == second.shape for first, second in pairs)
        and any(_varies(first) for first, _ in pairs)
        and all(equal(first, second) for first, second in pairs)
    )


def _varies(entry: TensorEntry) -> bool:
    """Return whether the first elements of a stored tensor have more than one value."""
    if not isinstance(entry, StoredEntry):
        return False
    files, raw = Files(), np.empty(min(_PROBE, entry.nbytes // entry.dtype.itemsize), entry.dtype.raw)
    try:
        files.read(entry, 0, raw)
    finally:
        files.close()
    return bool((raw != raw[:1]).any())
