"""Fold the adapters of all inputs, and find which inputs have an adapter's tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ...checkpoints.adapters import Adapter
from ...checkpoints.config_json import read_config
from ...checkpoints.tensors import Checkpoint, Origin, TensorEntry
from ...errors import CheckpointError
from ...records import record
from ..tied_heads import embedding_of
from ..vocabulary.tokens import read_vocabulary, same_files
from .fold import Fold
from .quantised_base import quantised_in_training, requantised


@record(frozen=True)
class Adapted:
    """Hold checkpoints with their adapters folded in.

    notes: a sentence on each adapter. warnings: on changes that are lost, and on tokens that are unknown. left_out: why
    tensors of adapters are not read, by their origins.
    """

    checkpoints: tuple[Checkpoint, ...]
    notes: list[str]
    warnings: list[str]
    left_out: Mapping[Origin, str]


def adapt(
    checkpoints: Sequence[Checkpoint],
    adapters: Sequence[Sequence[Adapter]],
    specs: Sequence[str],
    layout: str | None,
    fallback: Mapping[str, Any],
    tied: bool | None = None,
    allow_untrained: bool = False,
    requantise: bool = False,
) -> Adapted:
    """Fold adapters into checkpoints.

    adapters: those of each checkpoint, which are applied in this order. specs: what the user calls each checkpoint
    (`base+adapter`), its path in the result. layout: that of the checkpoints' tensors, None if unknown. fallback: a config
    for checkpoints without one. tied: whether lm_head is tied to the embedding; None: as config.json says. allow_untrained:
    whether an adapter that changes nothing causes a warning, instead of an error. requantise: whether weights are quantised
    and dequantised first, if an adapter was trained on quantised ones.

    Raises CheckpointError listing everything that can't be folded.
    """
    problems, notes, warnings = list[str](), list[str](), list[str]()
    left_out: dict[Origin, str] = {}
    result = []
    for checkpoint, its_adapters, spec in zip(checkpoints, adapters, specs, strict=True):
        config = read_config(checkpoint.folder) or fallback if its_adapters else {}
        own, config = config, config if tied is None else {**config, "tie_word_embeddings": tied}
        for adapter in its_adapters:
            try:
                if requantise:
                    checkpoint, said = requantised(checkpoint, adapter, layout, config)
                    notes.append(said)
                elif trained_on := quantised_in_training(adapter):
                    how = ", ".join(sorted(set(trained_on.values())))
                    warnings.append(
                        f"{adapter.path}: was trained on a base with {len(trained_on)} quantised weights ({how});"
                        " --merge_with_qdq_base_model folds it into the base as it was then"
                    )
                fold = Fold(checkpoint, adapter, layout, config, own)
                said = fold.run()
                if not fold.has_effect():
                    why = "every lora_B is zero, as before training; was it saved too early?"
                    if fold.is_unscaled():
                        why = "its config multiplies updates by 0, by lora_alpha or alpha_pattern; was it trained so?"
                    nothing = f"{adapter.path}: changes nothing: {why}"
                    if not allow_untrained:
                        raise CheckpointError(f"{nothing} --allow_untrained folds it nevertheless")
                    warnings.append(nothing)
                notes.append(said)
                new, doubts = _with_tokens(adapter, checkpoint, fold.tensors)
                warnings += [*fold.warnings, *doubts]
                left_out |= fold.left_out
                checkpoint = dataclasses.replace(new, path=spec, tensors=fold.tensors)
            except CheckpointError as error:
                problems += error.problems
        result.append(checkpoint)
    if problems:
        raise CheckpointError(problems)
    return Adapted(tuple(result), notes, list(dict.fromkeys(warnings)), left_out)


def _with_tokens(
    adapter: Adapter, checkpoint: Checkpoint, tensors: Mapping[str, TensorEntry]
) -> tuple[Checkpoint, list[str]]:
    """Return a checkpoint with the tokenizer that it has with an adapter; and sentences on rows and tokens that don't match.

    It is the adapter's, if the adapter brings tokens, as new rows of the embedding or in rows that had none. tensors: those
    with the adapter.
    """
    old, new = embedding_of(checkpoint.tensors), embedding_of(tensors)
    rows, resized = (new.shape[0], new.shape != old.shape) if old is not None and new is not None else (0, False)
    checkpoint = dataclasses.replace(checkpoint, resized=checkpoint.resized or resized)
    with_its = dataclasses.replace(checkpoint, tokenizer=adapter.folder)
    try:
        same = same_files(adapter.folder, checkpoint.tokens_folder)
        own = read_vocabulary(adapter.folder) if resized or not same else None
        if own is None:
            missing = (
                f"{adapter.path}: changes the number of tokens to {rows}, but has no tokenizer; put it beside the adapter"
            )
            return checkpoint, [missing] if resized else []
        known = None if resized else read_vocabulary(checkpoint.tokens_folder)
    except (CheckpointError, OSError) as error:
        reason = error.problems[0] if isinstance(error, CheckpointError) else f"{error.filename}: {error.strerror}"
        taken = with_its if resized else checkpoint
        return taken, [f"{taken.tokens_folder}: its tokenizer is taken, and may not be that of {adapter.path} ({reason})"]
    if known is not None and own.ids.keys() <= known.ids.keys():
        return checkpoint, []
    beyond = [token for token, row in own.ids.items() if row >= rows > 0]
    doubts = [
        f"{adapter.path}: tokens of its tokenizer, such as {token!r} ({len(beyond)} in all), are behind the {rows} rows of"
        " the embedding"
        for token in beyond[:1]
    ]
    if doubts and not resized:  # the base's tokenizer fits the rows
        trained = "it was trained on a model with more rows, which it doesn't hold; give that model as the base"
        return checkpoint, [f"{doubt}: {trained}" for doubt in doubts]
    return with_its, doubts
