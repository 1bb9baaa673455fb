"""Layouts: how a language model's weights are named and turned. Hugging Face stores a Linear's weight [out, in], Paddle
[in, out]; PaddleNLP also calls tensors after the model's type. Nothing in a file says which it is, so it is detected from
names and shapes, never guessed; then all inputs are viewed in one layout, without moving a byte.

    layout         names       Linear     lm_head
    hf             model.      [out, in]  [V, h]; absent if tied to the embedding
    paddleformers  model.      [in, out]  [V, h]
    paddlenlp      llama. ...  [in, out]  [h, V]; [V, h] if tied
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ..checkpoints.compare import equal
from ..checkpoints.names import EMBEDDINGS, HEAD, LAYOUTS, LINEARS, last_word
from ..checkpoints.tensors import Checkpoint, TensorEntry
from ..checkpoints.views import transpose
from ..errors import CheckpointError, MalformedError
from ..parsing import shown
from .detect import Detected, alike, detect
from .fused import PIECES, apart, kept, refit

METADATA = {"hf": "pt", "paddlenlp": "np", "paddleformers": "np"}  # what loaders want as safetensors' `format`


def normalise(
    inputs: Sequence[Checkpoint],
    given: Sequence[str | None],
    target: str | None,
    strict: bool,
    prefix: str,
    fallback: Mapping[str, Any],
) -> tuple[tuple[Checkpoint, ...], str | None, list[str]]:
    """All inputs in one layout: `target`, else the first one's.

    given: layouts that the user states, one per input, or none. fallback: a config of the same architecture, for inputs
    without one.

    Returns the inputs, their layout (None if it can't be told, but is the same as far as can be told), and a sentence on
    each that was turned. Raises CheckpointError listing what can't be told or turned.
    """
    given = given or (None,) * len(inputs)
    found = [detect(checkpoint, prefix, fallback, said) for checkpoint, said in zip(inputs, given, strict=True)]
    found = alike(inputs, found)
    goal = target or found[0].layout
    pairs = list(zip(inputs, found, strict=True))
    problems = []
    if len({one.tied for one in found}) > 1 and all(one.layout for one in found):
        ties = "; ".join(f"{checkpoint.path} {'does' if one.tied else 'does not'}" for checkpoint, one in pairs)
        problems.append(f"some inputs tie lm_head to the embedding and some don't, so they don't merge: {ties}")
    shown = [f"{checkpoint.path}: {one.layout or 'unknown'} ({one.evidence})" for checkpoint, one in pairs]
    if all(one.layout == goal for one in found):
        problems += _mixed_files(inputs) if goal is None else []
        if any(HEAD in checkpoint.tensors for checkpoint in inputs) and not problems:
            inputs, problems = _tie(pairs, goal)
        if problems:
            raise CheckpointError(problems)
        return (tuple(inputs), None, []) if goal is None else _fused_alike(inputs, found, goal, [])
    if strict and len({one.layout for one in found}) > 1:
        raise CheckpointError(f"--strict_layout: the inputs' layouts differ: {'; '.join(shown)}")
    problems += [
        f"{checkpoint.path}: can't tell its layout ({one.evidence}), and it may have to be turned to {goal or 'the others'};"
        f" say it with --layout, one of {', '.join(LAYOUTS)} for each model and then the base"
        for checkpoint, one in pairs
        if one.layout is None
    ]
    transposed = []
    for checkpoint, one in pairs if not problems else ():
        try:
            transposed.append(_turn(checkpoint, one, str(goal)))
        except CheckpointError as error:
            problems += error.problems
    if not problems:
        transposed, problems = _tie(list(zip(transposed, found, strict=True)), str(goal))
    if problems:
        raise CheckpointError(problems)
    notes = [f"{text}, read as {goal}" for text, one in zip(shown, found, strict=True) if one.layout != goal]
    return _fused_alike(transposed, found, str(goal), notes)


def _fused_alike(
    inputs: Sequence[Checkpoint], found: Sequence[Detected], layout: str, notes: list[str]
) -> tuple[tuple[Checkpoint, ...], str, list[str]]:
    """What one input has fused and another has apart, as the first has it; the layout; and notes with those on them.

    Raises CheckpointError listing what can't be converted.
    """
    result: list[Checkpoint] = []
    problems: list[str] = []
    for checkpoint, one in zip(inputs, found, strict=True):
        tensors, made, wrong = refit(checkpoint.tensors, inputs[0].tensors, layout, one.config)
        problems += [f"{checkpoint.path}: {sentence}" for sentence in wrong]
        result.append(dataclasses.replace(checkpoint, tensors=tensors) if made else checkpoint)
        if made:
            notes = [*notes, f"{checkpoint.path}: {len(made)} weights read fused, or apart, as {inputs[0].path} has them"]
    if problems:
        raise CheckpointError(problems)
    return tuple(result), layout, notes


def _mixed_files(inputs: Sequence[Checkpoint]) -> list[str]:
    """Why files of Paddle and of torch don't merge, if nothing tells whether their matrices are turned alike."""
    paddle = [checkpoint for checkpoint in inputs if checkpoint.kind in ("pdparams", "flex")]
    torch = [checkpoint for checkpoint in inputs if checkpoint.kind == "bin" or checkpoint.format == "pt"]
    square = [
        name
        for name, entry in inputs[0].tensors.items()
        if len(entry.shape) == 2 and entry.shape[0] == entry.shape[1] > 1 and last_word(name) not in EMBEDDINGS
    ]
    if not (paddle and torch and square):
        return []
    return [
        f"{paddle[0].path} is Paddle's and {torch[0].path} torch's, and they may store {square[0]!r} turned; say how with"
        f" --layout, one of {', '.join(LAYOUTS)} for each model and then the base"
    ]


# --- turning ---------------------------------------------------------------------------------------------------------


def _turn(checkpoint: Checkpoint, found: Detected, goal: str) -> Checkpoint:
    """The same tensors, named and turned as in `goal`. Raises CheckpointError listing those it doesn't know how to turn."""
    assert found.layout is not None
    model_type = str(found.config.get("model_type", "")).replace("-", "_")
    if "paddlenlp" in (goal, found.layout) and not model_type:
        raise CheckpointError(f"{checkpoint.path}: its config.json has no model_type, after which PaddleNLP names tensors")
    before, after = (f"{model_type}." if layout == "paddlenlp" else "model." for layout in (found.layout, goal))
    flips = (found.layout == "hf") != (goal == "hf")
    tensors: dict[str, TensorEntry] = {}
    wanted = apart(checkpoint.tensors, found.layout, found.config) if goal == "hf" else ()
    named, _, wrong = refit(checkpoint.tensors, wanted, found.layout, found.config)
    problems = [f"{checkpoint.path}: {sentence}" for sentence in wrong]
    for name, entry in named.items():
        word, known = last_word(name), name.endswith((".weight", ".bias"))
        new = after + name.removeprefix(before) if name.startswith(before) else name
        why = ""
        fused = kept(word, found.layout, goal, found.config) if word in PIECES else None
        if fused:
            new = new.replace(f".{word}.", f".{fused}.")
        if name == HEAD:
            stored = _head_is_turned(checkpoint, found)
            flip = stored != (goal == "paddlenlp" and not found.tied)
            if stored != (found.layout == "paddlenlp" and not found.tied):
                why = f"is not as {found.layout} stores it in a model that {'ties' if found.tied else 'does not tie'} it"
        elif word in PIECES and not fused:
            flip, why = False, f"is fused, and it isn't known how a model of type {shown(model_type)} fuses it in {goal}"
        elif len(entry.shape) < 2 or (word in EMBEDDINGS and known):
            flip = False
        else:
            flip = flips
            if flips and not (len(entry.shape) == 2 and word in LINEARS and name.endswith(".weight")):
                why = f"{list(entry.shape)}: it isn't known whether it is turned between {found.layout} and {goal}"
        if new in tensors:
            why = f"and another would both be called {new!r} in {goal}"
        try:
            tensors[new] = transpose(entry, new) if flip and not why else entry.renamed(new)
        except MalformedError as error:
            why = str(error)
        if why:
            problems.append(f"{checkpoint.path}: tensor {name!r} {why}")
    if problems:
        raise CheckpointError(problems)
    return dataclasses.replace(checkpoint, tensors=tensors)


def _tie(pairs: Sequence[tuple[Checkpoint, Detected]], goal: str | None) -> tuple[list[Checkpoint], list[str]]:
    """The checkpoints, tied ones with lm_head as `goal` stores it: Hugging Face's does without; in Paddle's it is the very
    bytes of the embedding, so that whatever is done to one is done to both; so it is in no known layout, where lm_head is
    the embedding's equal. And why that can't be."""
    result: list[Checkpoint] = []
    problems: list[str] = []
    for checkpoint, one in pairs:
        tensors = dict(checkpoint.tensors)
        matrices = (entry for name, entry in tensors.items() if last_word(name) in EMBEDDINGS and len(entry.shape) == 2)
        embedding = next(matrices, None)
        if goal is None and one.tied and embedding is not None:
            if HEAD in tensors and equal(tensors[HEAD], embedding):
                tensors[HEAD] = embedding.renamed(HEAD)
        elif one.tied and embedding is not None:
            head = tensors.pop(HEAD, None)
            if head is not None and not equal(head, embedding):
                problems.append(
                    f"{checkpoint.path}: config.json ties lm_head to the embedding, but their values differ; if lm_head is"
                    ' meant, set "tie_word_embeddings" to false there'
                )
            if goal != "hf":
                tensors[HEAD] = embedding.renamed(HEAD)
        result.append(dataclasses.replace(checkpoint, tensors=tensors))
    return result, problems


def transposed_in(tensors: Mapping[str, TensorEntry], layout: str | None) -> frozenset[str]:
    """The names of matrices that the layout has [in, out], and Hugging Face [out, in]: weights but embeddings. (A tied
    lm_head is the embedding.)"""
    if layout not in ("paddlenlp", "paddleformers"):
        return frozenset()
    matrices = {name: entry for name, entry in tensors.items() if len(entry.shape) == 2 and name.endswith(".weight")}
    embeddings = [entry for name, entry in matrices.items() if last_word(name) in EMBEDDINGS]
    head = tensors.get(HEAD)
    tied = head is not None and any(
        entry.shape == head.shape and (len(set(head.shape)) > 1 or entry.nameless == head.nameless) for entry in embeddings
    )
    return frozenset(
        name
        for name in matrices
        if last_word(name) not in EMBEDDINGS and (name != HEAD or (layout == "paddlenlp" and not tied))
    )


def _head_is_turned(checkpoint: Checkpoint, found: Detected) -> bool:
    """Whether lm_head is [h, V]; by its shape, if that tells."""
    head = checkpoint.tensors[HEAD].shape
    vocabulary = {entry.shape for name, entry in checkpoint.tensors.items() if last_word(name) in EMBEDDINGS}
    if len(set(head)) == 2 and len(vocabulary) == 1 and sorted(head) == sorted(next(iter(vocabulary))):
        return head not in vocabulary
    return found.layout == "paddlenlp" and not found.tied
