"""Describe a checkpoint from its headers and config.json.

The only tensors that are read are lm_head and the embedding, if both are stored and have the same shape and dtype.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping
from typing import Any

from ...checkpoints import hub
from ...checkpoints.adapters import kind_of, open_adapter, split_spec
from ...checkpoints.compare import equal
from ...checkpoints.config_json import read_config
from ...checkpoints.names import EMBEDDINGS, HEAD, last_word, stacks
from ...checkpoints.open import open_checkpoint
from ...checkpoints.quantised import signs
from ...checkpoints.tensors import Checkpoint, TensorEntry
from ...conversion.detect import detect
from ...conversion.inputs import SETTINGS, setting
from ...conversion.scaled import as_numbers
from ...errors import CheckpointError
from ...records import record
from .adapter import describe_adapter


@record(frozen=True)
class Looked:
    """The description of a path. checkpoint: None if it is an adapter. said: what --json prints of it."""

    checkpoint: Checkpoint | None
    said: dict[str, Any]


def look(spec: str, prefix: str) -> Looked:
    """Describe a checkpoint, an adapter, or a checkpoint with adapters (`base+adapter`). Raises CheckpointError."""
    path, *adapters = split_spec(spec)
    if not adapters and (kind_of(path) or hub.is_name(path)):
        try:
            checkpoint = open_checkpoint(path, prefix)
        except CheckpointError as error:
            try:
                return Looked(None, _adapter(path))
            except CheckpointError as other:
                raise other if kind_of(path) else error from None
        return Looked(checkpoint, _describe(checkpoint, prefix))
    problems: list[str] = []
    opened, said = None, []
    try:
        opened = open_checkpoint(path, prefix)
    except CheckpointError as error:
        problems += error.problems
    for adapter in adapters:
        try:
            said.append(_adapter(adapter))
        except CheckpointError as error:
            problems += error.problems
    if opened is None or problems:
        raise CheckpointError(problems)
    found = _describe(opened, prefix)
    return Looked(opened, found | {"path": spec, "adapters": said} if said else found)


def _adapter(path: str) -> dict[str, Any]:
    adapter = open_adapter(path)
    return {"path": path, **describe_adapter(adapter), **_contents(adapter.tensors, [])}


def _describe(checkpoint: Checkpoint, prefix: str) -> dict[str, Any]:
    """Return what `inspect --json` prints of a checkpoint without adapters."""
    config, read_as, numbers = read_config(checkpoint.folder), None, checkpoint
    try:
        found = as_numbers(checkpoint)
        numbers, read_as = found.checkpoint, found.note or None
    except CheckpointError as error:
        read_as = error.problems[0]
    detected = detect(numbers, prefix, {})
    tensors = checkpoint.tensors
    tied = _tied(checkpoint, detected.tied, config)
    twice = _shared(tensors)
    copies = [name for names in twice for name in names[1:]]
    if tied["same_values"] and HEAD not in copies:
        copies.append(HEAD)
    settings = {name: setting(config, name) for name in SETTINGS if setting(config, name) is not None}
    return {
        "path": checkpoint.path,
        "format": checkpoint.kind,
        "metadata": dict(checkpoint.metadata),
        "layout": detected.layout or detected.likely,
        "layout_evidence": detected.evidence,
        "family": config.get("model_type"),
        "architectures": config.get("architectures"),
        "settings": settings,
        "layers": stacks(tensors),
        **_contents(tensors, copies),
        "parameters": _parameters(numbers.tensors, copies),
        "tied": tied,
        "shared": twice,
        "quantised": signs(checkpoint, config),
        "read_as": read_as,
    }


def _contents(tensors: Mapping[str, TensorEntry], copies: Collection[str]) -> dict[str, Any]:
    """Return files, numbers and dtypes of tensors. copies: names of tensors that are not counted as parameters."""
    entries = tensors.values()
    return {
        "files": sorted({os.path.basename(file) for entry in entries for file in entry.files}),
        "tensors": len(tensors),
        "parameters": _parameters(tensors, copies),
        "bytes": sum(entry.nbytes for entry in entries),
        "dtypes": _dtypes(entries),
    }


def _parameters(tensors: Mapping[str, TensorEntry], copies: Collection[str]) -> int:
    return sum(math.prod(entry.shape) for name, entry in tensors.items() if name not in copies)


def _dtypes(entries: Iterable[TensorEntry]) -> dict[str, dict[str, int]]:
    """Return dtype -> its numbers of tensors, parameters and bytes; the dtype with most bytes first."""
    found: dict[str, Counter[str]] = {}
    for entry in entries:
        counter = found.setdefault(entry.dtype.name, Counter(tensors=0, parameters=0, bytes=0))
        counter.update(tensors=1, parameters=math.prod(entry.shape), bytes=entry.nbytes)
    return {name: dict(found[name]) for name in sorted(found, key=lambda name: -found[name]["bytes"])}


def _tied(checkpoint: Checkpoint, tied: bool, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return whether lm_head is tied to the embedding.

    config: as stated in config.json (None: it doesn't state it). tied: as merges treat it. stored: the names of those of
    both that are stored. same_values: whether their values are equal (None unless both are stored in the same shape and
    dtype).
    """
    tensors = checkpoint.tensors
    embedding = next((e for name, e in tensors.items() if last_word(name) in EMBEDDINGS and len(e.shape) == 2), None)
    head, same = tensors.get(HEAD), None
    if head is not None and embedding is not None and (head.shape, head.dtype) == (embedding.shape, embedding.dtype):
        same = equal(head, embedding)
    says = config.get("tie_word_embeddings")
    language_model = embedding is not None or head is not None
    return {
        "config": says if isinstance(says, bool) else None,
        "tied": tied and language_model,
        "stored": [entry.name for entry in (embedding, head) if entry is not None],
        "same_values": same,
    }


def _shared(tensors: Mapping[str, TensorEntry]) -> list[list[str]]:
    """Return groups of names of tensors that are stored in the same bytes of a file."""
    places: dict[Hashable, list[str]] = {}
    for name, entry in tensors.items():
        if entry.nbytes:
            places.setdefault(entry.nameless, []).append(name)
    return [names for names in places.values() if len(names) > 1]
