"""Open the inputs of a merge, or of a command that compares checkpoints, and check that their tensors match.

    open_inputs     for a merge: checkpoints and adapters, before they are converted
    differences     for a merge: how the tensors of the inputs differ
    open_together   for diff, analyze and extract-lora: checkpoints in one layout with their adapters folded in

Only headers are read, and the values of a few tensors that may be tied.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..checkpoints.adapters import Adapter, open_model
from ..checkpoints.config_json import read_config
from ..checkpoints.names import EMBEDDINGS, HEAD, last_word
from ..checkpoints.quantised import problems as quantised
from ..checkpoints.quantised import signs
from ..checkpoints.tensors import Checkpoint, TensorEntry, stored
from ..dtypes import DType
from ..errors import CheckpointError
from .detect import detect
from .layout import normalise
from .lora.fold import adapt

# Fields of config.json that determine how weights are used, and that shapes don't show.
SETTINGS = (
    "model_type",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "rms_norm_eps",
    "layer_norm_eps",
    "rope_theta",
    "partial_rotary_factor",
    "sliding_window",
)


def open_inputs(specs: Sequence[str], prefix: str) -> list[tuple[Checkpoint, Sequence[Adapter]]]:
    """Read the headers of checkpoints, and of the adapters to fold into each.

    specs: paths, or `base+adapter` with any number of adapters. prefix: as of open.open_checkpoint. Raises CheckpointError
    listing everything wrong with any of them, such as that one is quantised.
    """
    inputs: list[tuple[Checkpoint, Sequence[Adapter]]] = []
    problems: list[str] = []
    for spec in specs:
        try:
            checkpoint, adapters = open_model(spec, prefix)
            adapters = [dataclasses.replace(one, tensors=_marked(one.path, one.tensors)) for one in adapters]
            inputs.append((dataclasses.replace(checkpoint, tensors=_marked(checkpoint.path, checkpoint.tensors)), adapters))
            problems += quantised(inputs[-1][0], read_config(inputs[-1][0].folder))
        except CheckpointError as error:
            problems += error.problems
    if problems:
        raise CheckpointError(list(dict.fromkeys(problems)))
    return inputs


def _marked(path: str, tensors: Mapping[str, TensorEntry]) -> dict[str, TensorEntry]:
    """Return the same tensors with their origin set to (path, name), which is kept through all conversions."""
    found: dict[str, TensorEntry] = {}
    for name, entry in tensors.items():
        entry = stored(entry)
        parts = tuple(dataclasses.replace(part, origin=(path, name)) for part in entry.parts)
        found[name] = dataclasses.replace(entry, parts=parts, origin=(path, name))
    return found


def differences(
    inputs: Sequence[Checkpoint], out_dtype: DType | None, aligned: Callable[[str], bool] = lambda name: False
) -> list[str]:
    """Return a sentence on each tensor that is missing in some inputs, or that differs in shape or dtype between them.

    out_dtype: of the output, if one is given; then float dtypes may differ. aligned: whether the tensor of a name will be
    aligned to one vocabulary; then its shapes may differ. Returns an empty list if the inputs match.
    """
    everywhere = {name: None for checkpoint in inputs for name in checkpoint.tensors}
    if not everywhere:
        return [f"{inputs[0].path}: holds no tensors"]
    missing: list[str] = []
    shapes: list[str] = []
    dtypes: list[str] = []
    for name in everywhere:
        without = [checkpoint.path for checkpoint in inputs if name not in checkpoint.tensors]
        if without:
            holders = [checkpoint.path for checkpoint in inputs if name in checkpoint.tensors]
            missing.append(f"tensor {name!r} is missing in {', '.join(without)} (it is in {', '.join(holders)})")
            continue
        entries = [(checkpoint.path, checkpoint.tensors[name]) for checkpoint in inputs]
        if len({entry.shape for _, entry in entries}) > 1 and not aligned(name):
            shown = ", ".join(f"{list(entry.shape)} in {path}" for path, entry in entries)
            remedy = "; --tokenizer_source union (or base) aligns different vocabularies" if _holds_tokens(name) else ""
            shapes.append(f"tensor {name!r} has different shapes: {shown}{remedy}")
        all_float = all(entry.dtype.is_float for _, entry in entries)
        if len({entry.dtype for _, entry in entries}) > 1 and not (all_float and out_dtype):
            shown = ", ".join(f"{entry.dtype.name} in {path}" for path, entry in entries)
            remedy = "; to merge them, give the dtype of the result with --out_dtype" if all_float else ""
            dtypes.append(f"tensor {name!r} has different dtypes: {shown}{remedy}")
    problems = []
    for found in (missing, shapes, dtypes):
        problems += found
    return problems


def _holds_tokens(name: str) -> bool:
    """Return whether a tensor has a row per token: an embedding or lm_head."""
    return last_word(name) in (*EMBEDDINGS, last_word(HEAD))


def setting(config: Mapping[str, Any], name: str) -> Any:
    """Return the value of one of SETTINGS in a config; None if it is absent."""
    rope = config.get("rope_parameters")  # where transformers 5 writes some of them
    value = config.get(name)
    return rope.get(name) if value is None and isinstance(rope, dict) else value


def in_one_layout(
    checkpoints: Sequence[Checkpoint], given: Sequence[str | None], prefix: str
) -> tuple[tuple[Checkpoint, ...], str | None, list[str]]:
    """Convert checkpoints to the first one's layout, also those that can't be merged with one another.

    This is layout.normalise of all of them. If that refuses them (for example because one ties lm_head and another doesn't),
    each is converted alone; if that fails too, and all have one layout, they stay as they are stored.
    given: the layouts that the user states, one each, or an empty sequence. prefix: "model" or "master_weights".

    Returns the checkpoints; the layout, None if it is unknown; and sentences on what was done. Raises CheckpointError.
    """
    config = next((found for one in checkpoints if (found := read_config(one.folder))), {})
    try:
        return normalise(inputs=checkpoints, given=given, target=None, strict=False, prefix=prefix, fallback=config)
    except CheckpointError as error:
        pairs = list(zip(checkpoints, given or [None] * len(checkpoints), strict=True))
        layouts = [detect(one, prefix, config, said).layout for one, said in pairs]
        notes = [f"{line} (compared nevertheless)" for line in error.problems]
        if None in layouts:
            raise
        try:
            alone = [
                normalise(inputs=[one], given=[said], target=layouts[0], strict=False, prefix=prefix, fallback=config)
                for one, said in pairs
            ]
            return tuple(views[0] for views, _, _ in alone), layouts[0], notes
        except CheckpointError:
            if len(set(layouts)) > 1:
                raise
        return tuple(checkpoints), layouts[0], notes


@dataclass(frozen=True)
class Opened:
    """Hold checkpoints in one layout. layout: None if it is unknown. notes: sentences on what was converted or folded in."""

    checkpoints: tuple[Checkpoint, ...]
    layout: str | None
    notes: list[str]


def open_together(specs: Sequence[str], layouts: Sequence[str | None], prefix: str) -> Opened:
    """Open checkpoints of any format and layout in the first one's layout, with their adapters folded in.

    specs: paths, or `base+adapter`. layouts: those that the user states, one each, or an empty sequence. prefix: as of
    open.open_checkpoint. Raises CheckpointError listing everything wrong with any of them.
    """
    opened, problems = [], []
    for spec in specs:
        try:
            opened.append(open_model(spec, prefix))
        except CheckpointError as error:
            problems += error.problems
    if problems:
        raise CheckpointError(list(dict.fromkeys(problems)))
    checkpoints, adapters = [checkpoint for checkpoint, _ in opened], [held for _, held in opened]
    fallback = next((config for one in checkpoints if (config := read_config(one.folder))), {})
    viewed, layout, notes = in_one_layout(checkpoints, layouts, prefix)
    adapted, folded, noticed = adapt(viewed, adapters, specs, layout, fallback)
    for checkpoint in checkpoints:
        if found := signs(checkpoint, read_config(checkpoint.folder)):
            notes.append(f"{checkpoint.path} is quantised ({'; '.join(found)}): its codes are compared as plain numbers")
    return Opened(adapted, layout, [*notes, *folded, *noticed])
