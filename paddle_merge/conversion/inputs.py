"""The inputs of a merge: opened together, and compared by their headers."""

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

# What config.json says of how weights are used, and shapes don't.
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
    """The headers of checkpoints, and of the adapters to fold into each.

    Raises CheckpointError listing what is wrong with any of them.
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
    """The same tensors, each knowing where it comes from, whatever will be made of it."""
    found: dict[str, TensorEntry] = {}
    for name, entry in tensors.items():
        entry = stored(entry)
        parts = tuple(dataclasses.replace(part, origin=(path, name)) for part in entry.parts)
        found[name] = dataclasses.replace(entry, parts=parts, origin=(path, name))
    return found


def differences(
    inputs: Sequence[Checkpoint], out_dtype: DType | None, aligned: Callable[[str], bool] = lambda name: False
) -> list[str]:
    """Every way in which the inputs' tensors don't match: names, shapes (but of those that will be aligned), dtypes (of
    numbers, if no out_dtype is given)."""
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
            remedy = "; --tokenizer_source union (or base) aligns vocabularies that differ" if _holds_tokens(name) else ""
            shapes.append(f"tensor {name!r} has different shapes: {shown}{remedy}")
        all_float = all(entry.dtype.is_float for _, entry in entries)
        if len({entry.dtype for _, entry in entries}) > 1 and not (all_float and out_dtype):
            shown = ", ".join(f"{entry.dtype.name} in {path}" for path, entry in entries)
            remedy = "; --out_dtype merges them and says how to store the result" if all_float else ""
            dtypes.append(f"tensor {name!r} has different dtypes: {shown}{remedy}")
    problems = []
    for found in (missing, shapes, dtypes):
        problems += found
    return problems


def _holds_tokens(name: str) -> bool:
    return last_word(name) in (*EMBEDDINGS, last_word(HEAD))


def setting(config: Mapping[str, Any], name: str) -> Any:
    """What a config says of one of SETTINGS; None if it doesn't."""
    rope = config.get("rope_parameters")  # where transformers 5 writes them
    value = config.get(name)
    return rope.get(name) if value is None and isinstance(rope, dict) else value


def in_one_layout(
    checkpoints: Sequence[Checkpoint], given: Sequence[str | None], prefix: str
) -> tuple[tuple[Checkpoint, ...], str | None, list[str]]:
    """The checkpoints as layout.normalise views them, in the first one's layout; where it refuses them together (one ties
    lm_head and another doesn't, for one), each as it views it alone; where it refuses that too, but they are of one layout,
    as they are stored. given: stated layouts, one each, or none.

    Returns them, the layout (None if it can't be told), and sentences on what was done. Raises CheckpointError.
    """
    config = next((found for one in checkpoints if (found := read_config(one.folder))), {})
    try:
        return normalise(checkpoints, given, None, False, prefix, config)
    except CheckpointError as error:
        pairs = list(zip(checkpoints, given or [None] * len(checkpoints), strict=True))
        layouts = [detect(one, prefix, config, said).layout for one, said in pairs]
        notes = [f"{line} (compared all the same)" for line in error.problems]
        if None in layouts:
            raise
        try:
            alone = [normalise([one], [said], layouts[0], False, prefix, config) for one, said in pairs]
            return tuple(views[0] for views, _, _ in alone), layouts[0], notes
        except CheckpointError:
            if len(set(layouts)) > 1:
                raise
        return tuple(checkpoints), layouts[0], notes


@dataclass(frozen=True)
class Opened:
    """layout: None if it can't be told. notes: sentences on how the checkpoints came to be alike."""

    checkpoints: tuple[Checkpoint, ...]
    layout: str | None
    notes: list[str]


def open_together(specs: Sequence[str], layouts: Sequence[str | None], prefix: str) -> Opened:
    """Checkpoints of any formats and layouts, `base+adapter` too, in the first one's layout; no weights are read.

    layouts: stated ones, one each, or none. Raises CheckpointError listing everything wrong with any of them.
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
