"""Bring models that tie lm_head to the embedding, and models that don't, into agreement."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from ..checkpoints.compare import equal
from ..checkpoints.config_json import has_language_head
from ..checkpoints.names import EMBEDDINGS, HEAD, last_word
from ..checkpoints.tensors import Checkpoint, TensorEntry
from ..checkpoints.views import transpose
from ..errors import CheckpointError
from .copies import with_copy
from .detect import Detected


def in_agreement(
    inputs: Sequence[Checkpoint], found: Sequence[Detected], tie: str | None
) -> tuple[list[Checkpoint], list[Detected], bool | None, list[str]]:
    """Return the inputs, all tied or all untied; what is known about them then; whether the output is tied, if that is
    another than some config.json says; and sentences on what was done.

    An lm_head that is untied is a view of the embedding. tie: as of layout.normalise; with "auto", inputs of unknown layout
    stay as they are. Raises CheckpointError for a tied model that has an lm_head of its own or no known embedding, and for a
    layout that is unknown where `tie` asks for a change.
    """
    mixed = len({one.tied for one in found if has_language_head(one.config)}) > 1
    wanted = {"untie": False, "auto": False if mixed else None, "keep": True if mixed else None}.get(str(tie))
    changes = [has_language_head(one.config) and one.tied != wanted for one in found]
    if wanted is None or not any(changes):
        return list(inputs), list(found), None, []
    if unknown := [checkpoint.path for checkpoint, one in zip(inputs, found, strict=True) if one.layout is None]:
        if tie == "auto":  # that lm_head is missing in some is told later, if it is
            return list(inputs), list(found), None, []
        raise CheckpointError(
            f"--tie {tie}: the layout of {', '.join(unknown)} is unknown, which says how lm_head is stored; state it with"
            " --layout"
        )
    checkpoints, notes = [], list[str]()
    for checkpoint, one, change in zip(inputs, found, changes, strict=True):
        if change and wanted:
            tensors = {name: entry for name, entry in checkpoint.tensors.items() if name != HEAD}
            notes.append(
                f"{checkpoint.path}: its lm_head is left out, as --tie keep asks: the output ties it to the embedding"
            )
            checkpoint = dataclasses.replace(checkpoint, tensors=tensors)
        elif change:
            embedding, stored = embedding_of(checkpoint.tensors), checkpoint.tensors.get(HEAD)
            if embedding is None:
                raise CheckpointError(
                    f"{checkpoint.path}: ties lm_head to an embedding that isn't found by its name, so it can't be untied"
                )
            if stored is not None and not equal(stored, embedding):
                raise CheckpointError(contradiction(checkpoint.path))
            head = transpose(embedding, HEAD) if one.layout == "paddlenlp" else embedding
            notes.append(f"{checkpoint.path}: ties lm_head to the embedding, and the output doesn't: the embedding is both")
            checkpoint = with_copy(checkpoint, HEAD, head)
        checkpoints.append(checkpoint)
    return checkpoints, [dataclasses.replace(one, tied=wanted) for one in found], wanted, notes


def contradiction(path: str) -> str:
    """Return the sentence on a model that is tied and yet has an lm_head of its own."""
    return (
        f"{path}: config.json ties lm_head to the embedding, but their values differ; if lm_head is meant, set"
        ' "tie_word_embeddings" to false there'
    )


def embedding_of(tensors: Mapping[str, TensorEntry]) -> TensorEntry | None:
    """Return the matrix that has a row per token; None if there is none."""
    matrices = (entry for name, entry in tensors.items() if last_word(name) in EMBEDDINGS and len(entry.shape) == 2)
    return next(matrices, None)
