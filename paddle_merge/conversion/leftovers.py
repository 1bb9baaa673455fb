"""Handle what PaddleFormers leaves as it has it in memory in checkpoints that are in Hugging Face's layout otherwise.

    fused weights, [in, out]        its format "unified_checkpoint" leaves all, its default some of Gemma 3's
Gemma 3's tied lm_head, [h, V]  its format "unified_checkpoint" transposes it
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ..checkpoints.names import HEAD, last_word
from ..checkpoints.tensors import Checkpoint, TensorEntry
from ..checkpoints.views import transpose
from ..errors import CheckpointError, MalformedError
from .detect import Detected
from .fused import FUSED_IN_PADDLEFORMERS, split
from .tied_heads import embedding_of

_FUSED = ("qkv_proj", "up_gate_proj")


def is_leftover(name: str, layout: str | None, family: Any) -> bool:
    """Return whether a tensor is a fused one, [in, out], in a checkpoint whose other tensors are in Hugging Face's layout.

    layout: the checkpoint's. family: config.json's model_type.
    """
    return layout == "hf" and family in FUSED_IN_PADDLEFORMERS and last_word(name) in _FUSED


def without_leftovers(
    inputs: Sequence[Checkpoint], found: Sequence[Detected], target: str | None
) -> tuple[list[Checkpoint], list[str]]:
    """Return the inputs with leftovers as Hugging Face's layout has them, and a sentence on each that was split.

    found: what was detected about each. target: the layout that the user asks for. Fused weights stay if all inputs have the
    same ones and no layout is asked for: PaddleFormers loads such models. Raises CheckpointError listing every tensor that
    can't be split.
    """
    result = [_with_head_upright(checkpoint, one) for checkpoint, one in zip(inputs, found, strict=True)]
    left = [
        {name for name in checkpoint.tensors if is_leftover(name, one.layout, one.config.get("model_type"))}
        for checkpoint, one in zip(inputs, found, strict=True)
    ]
    if target is None and all(names == left[0] for names in left) and len({one.layout for one in found}) == 1:
        return result, []
    notes, problems = list[str](), list[str]()
    for number, names in enumerate(left):
        if names:
            tensors, wrong = _split(result[number].tensors, names, found[number].config)
            problems += [f"{inputs[number].path}: {sentence}" for sentence in wrong]
            notes.append(f"{inputs[number].path}: {len(names)} weights split that PaddleFormers left fused, [in, out]")
            result[number] = dataclasses.replace(result[number], tensors=tensors)
    if problems:
        raise CheckpointError(problems)
    return result, notes


def _split(
    tensors: Mapping[str, TensorEntry], leftovers: set[str], config: Mapping[str, Any]
) -> tuple[dict[str, TensorEntry], list[str]]:
    """Return the tensors with leftovers split, and a sentence on each that can't be, which begins with its name."""
    result: dict[str, TensorEntry] = {}
    problems: list[str] = []
    for name, entry in tensors.items():
        try:
            pieces = split(entry, "paddleformers", config) if name in leftovers else {}
        except MalformedError as error:
            problems.append(f"tensor {name!r} {error}")
            continue
        for new, piece in pieces.items():
            if new in tensors:
                problems.append(f"tensor {name!r} would be converted to {new!r}, which exists already")
            result[new] = transpose(piece, new) if len(piece.shape) == 2 else piece
        result |= {} if pieces else {name: entry}
    return result, problems


def _with_head_upright(checkpoint: Checkpoint, found: Detected) -> Checkpoint:
    """Return a checkpoint with a tied lm_head that is [h, V] in Hugging Face's layout as the embedding is, [V, h]."""
    head, embedding = checkpoint.tensors.get(HEAD), embedding_of(checkpoint.tensors)
    if found.layout != "hf" or not found.tied or head is None or embedding is None:
        return checkpoint
    if head.shape == embedding.shape or head.shape != embedding.shape[::-1]:
        return checkpoint
    return dataclasses.replace(checkpoint, tensors={**checkpoint.tensors, HEAD: transpose(head, HEAD)})
