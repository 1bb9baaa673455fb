"""Convert language models between layouts, as views of the same bytes: names, and the orientation of matrices.

    layout         names begin with  Linear weights  lm_head (V: vocabulary, h: hidden size)
    hf             model.            [out, in]       [V, h]; absent if tied to the embedding
    paddleformers  model.            [in, out]       [V, h]
    paddlenlp      llama. etc.       [in, out]       [h, V]; [V, h] if tied

No file states its layout, so detect.py finds it from names and shapes. The entry point is normalise().
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..checkpoints.compare import equal
from ..checkpoints.names import EMBEDDINGS, HEAD, LAYOUTS, last_word
from ..checkpoints.tensors import Checkpoint, TensorEntry
from ..checkpoints.views import transpose
from ..errors import CheckpointError, MalformedError
from ..parsing import shown, tensors_named
from ..records import record
from .detect import Detected, detect, infer_from_others
from .fused import PIECES, fused_name, names_in_paddleformers, refit, split_names
from .leftovers import is_leftover, without_leftovers
from .orientation import is_transposed
from .paddle_names import in_files
from .tied_heads import contradiction, embedding_of, in_agreement

METADATA = {"hf": "pt", "paddlenlp": "np", "paddleformers": "np"}  # the `format` in safetensors metadata that loaders expect
_STATE = f"state it with --layout, one of {', '.join(LAYOUTS)} for each model and then for the base"


@record(frozen=True)
class Normalised:
    """Hold inputs that were brought into one layout.

    layout: None if it is unknown and nothing had to be converted. notes: a sentence on each input that was converted.
    tied: whether the output's lm_head is tied to its embedding, where it isn't as the inputs' config.json says; else None.
    """

    inputs: tuple[Checkpoint, ...]
    layout: str | None
    notes: list[str]
    tied: bool | None = None


def normalise(
    inputs: Sequence[Checkpoint],
    given: Sequence[str | None],
    target: str | None,
    strict: bool,
    prefix: str,
    fallback: Mapping[str, Any],
    tie: str | None = None,
) -> Normalised:
    """Convert all inputs to one layout: `target` if it is given, else that of the first.

    given: the layouts that the user states, one per input, or an empty sequence. strict: whether to refuse inputs of
    different layouts. prefix: which weights these are, "model" or "master_weights". fallback: a config of the same
    architecture, for inputs without one. tie: what happens to lm_head where some inputs tie it to the embedding and some
    don't: "auto", tied ones are untied; "keep", all are tied, so those that have an lm_head lose it; "untie", tied ones are
    untied, even if all are; None, the inputs are refused.

    Raises CheckpointError listing every layout that is unknown and every tensor that can't be converted.
    """
    given = given or (None,) * len(inputs)
    found = [detect(checkpoint, prefix, fallback, said) for checkpoint, said in zip(inputs, given, strict=True)]
    found = infer_from_others(inputs, found)
    goal = target or found[0].layout
    inputs, split = without_leftovers(inputs, found, target)
    inputs, found, tied, notes = in_agreement(inputs, found, tie)
    notes = [*split, *notes]
    pairs = list(zip(inputs, found, strict=True))
    problems = []
    if len({one.tied for one in found}) > 1 and all(one.layout for one in found):
        ties = "; ".join(f"{checkpoint.path} {'does' if one.tied else 'does not'}" for checkpoint, one in pairs)
        path = next(checkpoint.path for checkpoint, one in pairs if one.tied)
        problems.append(
            f"some inputs tie lm_head to the embedding and some don't, so they don't have the same tensors: {ties}; a merge"
            f" with itself unties {path}: --model_path_list {path} {path} --tie untie"
        )
    shown = [f"{checkpoint.path}: {one.layout or 'unknown'} ({one.evidence})" for checkpoint, one in pairs]
    if all(one.layout == goal for one in found):
        problems += _mixed_files(inputs) if goal is None else []
        if any(HEAD in checkpoint.tensors for checkpoint in inputs) and not problems:
            inputs, problems = _tie(pairs, goal)
        if problems:
            raise CheckpointError(problems)
        unchanged = Normalised(tuple(inputs), None, notes, tied)
        return unchanged if goal is None else _match_fused(inputs, found, goal, notes, tied, target)
    if strict and len({one.layout for one in found}) > 1:
        raise CheckpointError(f"--strict_layout: the inputs' layouts differ: {'; '.join(shown)}")
    problems += [
        f"{checkpoint.path}: its layout is unknown ({one.evidence}), and it may have to be converted to"
        f" {goal or 'that of the others'}; {_STATE}"
        for checkpoint, one in pairs
        if one.layout is None
    ]
    converted = []
    for checkpoint, one in pairs if not problems else ():
        try:
            converted.append(_convert(checkpoint, one, str(goal)))
        except CheckpointError as error:
            problems += error.problems
    if not problems:
        converted, problems = _tie(list(zip(converted, found, strict=True)), str(goal))
    if problems:
        raise CheckpointError(problems)
    views = [f"{text}, read as {goal}" for text, one in zip(shown, found, strict=True) if one.layout != goal]
    return _match_fused(converted, found, str(goal), [*views, *notes], tied, target)


def _match_fused(
    inputs: Sequence[Checkpoint],
    found: Sequence[Detected],
    layout: str,
    notes: list[str],
    tied: bool | None,
    target: str | None,
) -> Normalised:
    """Split or fuse weights of the inputs, all of one layout, so that the same ones are fused as in the first input, or as
    PaddleFormers fuses them where its layout is asked for.

    found: what was detected about each. To `notes` a sentence is added on each input that was changed. tied: as
    Normalised.tied. target: the layout that the user asks for. Raises CheckpointError listing every tensor that can't be
    converted.
    """
    result: list[Checkpoint] = []
    problems: list[str] = []
    wanted: Collection[str] = inputs[0].tensors
    if target == "paddleformers":
        try:
            wanted = names_in_paddleformers(wanted, found[0].config)
        except MalformedError as error:
            raise CheckpointError(f"{inputs[0].path}: {error}") from None
    for checkpoint, one in zip(inputs, found, strict=True):
        tensors, made, wrong = refit(checkpoint.tensors, wanted, layout, one.config)
        problems += [f"{checkpoint.path}: {sentence}" for sentence in wrong]
        result.append(dataclasses.replace(checkpoint, tensors=tensors) if made else checkpoint)
        if made:
            match = "as PaddleFormers has them" if target == "paddleformers" else f"to match {inputs[0].path}"
            notes = [*notes, f"{checkpoint.path}: {len(made)} weights split or fused, {match}"]
    if problems:
        raise CheckpointError(problems)
    return Normalised(tuple(result), layout, notes, tied)


def _mixed_files(inputs: Sequence[Checkpoint]) -> list[str]:
    """Return a sentence if files of Paddle and of torch are to be merged, and both may store a square matrix transposed.

    inputs: of unknown layout. Returns an empty list if there is no such matrix, or if all files are of one library.
    """
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
        f"{paddle[0].path} was saved by Paddle and {torch[0].path} by torch, and one may store {square[0]!r} transposed;"
        f" the layout is unknown: {_STATE}"
    ]


# --- one checkpoint --------------------------------------------------------------------------------------------------


def _convert(checkpoint: Checkpoint, found: Detected, goal: str) -> Checkpoint:
    """Return a checkpoint with its tensors named, split and transposed as layout `goal` has them.

    Raises CheckpointError listing every tensor of which it is unknown how it has to be converted.
    """
    assert found.layout is not None
    model_type = str(found.config.get("model_type", "")).replace("-", "_")
    if "paddlenlp" in (goal, found.layout) and not model_type:
        raise CheckpointError(f"{checkpoint.path}: its config.json has no model_type, with which PaddleNLP's names begin")
    before, after = (f"{model_type}." if layout == "paddlenlp" else "model." for layout in (found.layout, goal))
    flips = (found.layout == "hf") != (goal == "hf")
    tensors: dict[str, TensorEntry] = {}
    wanted = split_names(checkpoint.tensors, found.layout, found.config) if goal == "hf" else ()
    named, _, wrong = refit(checkpoint.tensors, wanted, found.layout, found.config)
    problems = [f"{checkpoint.path}: {sentence}" for sentence in wrong]
    unknown = list[TensorEntry]()
    for name, entry in named.items():
        word = last_word(name)
        new = after + name.removeprefix(before) if name.startswith(before) else name
        why = ""
        fused = fused_name(word, found.layout, goal, found.config) if word in PIECES else None
        if fused:
            new = new.replace(f".{word}.", f".{fused}.")
        if goal == "hf":
            new = in_files(new, model_type)
        if name == HEAD:
            stored = _head_is_transposed(checkpoint, found)
            flip = stored != (goal == "paddlenlp" and not found.tied)
            if stored != (found.layout == "paddlenlp" and not found.tied):
                ties = "ties" if found.tied else "does not tie"
                why = f"is not stored as {found.layout} does for a model that {ties} it to the embedding"
        elif word in PIECES and not fused:
            flip, why = False, f"is fused, and it isn't known how a model of type {shown(model_type)} fuses it in {goal}"
        else:
            turned = is_transposed(name, entry.shape, found.config.get("model_type"))
            flip = flips and turned is True
            unknown += [entry] if flips and turned is None else []
        if new in tensors:
            why = f"and another would both have the name {new!r} in {goal}"
        try:
            tensors[new] = transpose(entry, new) if flip and not why else entry.renamed(new)
        except MalformedError as error:
            why = str(error)
        if why:
            problems.append(f"{checkpoint.path}: tensor {name!r} {why}")
    if unknown:
        names, shape = tensors_named([entry.name for entry in unknown]), list(unknown[0].shape)
        which, has = (f" {shape}", "it has") if len(unknown) == 1 else (f" (the first is {shape})", "they have")
        problems.append(
            f"{checkpoint.path}: {names}{which}: it isn't known whether {has} to be transposed from {found.layout} to {goal}"
        )
    if problems:
        raise CheckpointError(problems)
    return dataclasses.replace(checkpoint, tensors=tensors)


def _tie(pairs: Sequence[tuple[Checkpoint, Detected]], goal: str | None) -> tuple[list[Checkpoint], list[str]]:
    """Return the checkpoints with lm_head as layout `goal` has it in tied models, and sentences on why that can't be.

    Hugging Face's layout has no lm_head in tied models. In Paddle's layouts it becomes a view of the embedding's bytes, so
    that a merge changes both in the same way. In an unknown layout (None) it does too, if it equals the embedding.
    """
    result: list[Checkpoint] = []
    problems: list[str] = []
    for checkpoint, one in pairs:
        tensors = dict(checkpoint.tensors)
        embedding = embedding_of(tensors)
        if goal is None and one.tied and embedding is not None:
            if HEAD in tensors and equal(tensors[HEAD], embedding):
                tensors[HEAD] = embedding.renamed(HEAD)
        elif one.tied and embedding is not None:
            head = tensors.pop(HEAD, None)
            if head is not None and not equal(head, embedding):
                problems.append(contradiction(checkpoint.path))
            if goal != "hf":
                tensors[HEAD] = embedding.renamed(HEAD)
        result.append(dataclasses.replace(checkpoint, tensors=tensors))
    return result, problems


def transposed_in(tensors: Mapping[str, TensorEntry], layout: str | None, family: Any = None) -> frozenset[str]:
    """Return the names of the matrices that a layout stores [in, out] and Hugging Face stores [out, in].

    These are all two-dimensional weights except embeddings, those that no layout transposes, and a tied lm_head. In layout
    hf they are what PaddleFormers left fused; none in an unknown one. family: config.json's model_type.
    """
    if layout not in ("paddlenlp", "paddleformers"):
        return frozenset(name for name, one in tensors.items() if is_leftover(name, layout, family) and len(one.shape) == 2)
    matrices = {name: entry for name, entry in tensors.items() if len(entry.shape) == 2 and name.endswith(".weight")}
    embeddings = [entry for name, entry in matrices.items() if last_word(name) in EMBEDDINGS]
    head = tensors.get(HEAD)
    tied = head is not None and any(
        entry.shape == head.shape and (len(set(head.shape)) > 1 or entry.nameless == head.nameless) for entry in embeddings
    )
    return frozenset(
        name
        for name in matrices
        if is_transposed(name, matrices[name].shape, family) is not False
        and (name != HEAD or (layout == "paddlenlp" and not tied))
    )


def _head_is_transposed(checkpoint: Checkpoint, found: Detected) -> bool:
    """Return whether lm_head is stored [h, V], by its shape, or by the layout if it is square or no embedding matches it."""
    head = checkpoint.tensors[HEAD].shape
    vocabulary = {entry.shape for name, entry in checkpoint.tensors.items() if last_word(name) in EMBEDDINGS}
    if len(set(head)) == 2 and len(vocabulary) == 1 and sorted(head) == sorted(next(iter(vocabulary))):
        return head not in vocabulary
    return found.layout == "paddlenlp" and not found.tied
