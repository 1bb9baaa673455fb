"""The inputs of a merge: opened together, and compared by their headers."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .detect import EMBEDDINGS, last_word, read_config
from .donor import Donor
from .dtypes import DType
from .errors import CheckpointError
from .layout import HEAD
from .quantised import problems as quantised
from .readers import Checkpoint, TensorEntry
from .readers.adapters import Adapter, open_model

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
    found = {}
    for name, entry in tensors.items():
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


def warnings(inputs: Sequence[Checkpoint], donor: Donor) -> list[str]:
    """What is allowed but likely not meant."""
    found = []
    formats = {checkpoint.format for checkpoint in inputs}
    if len(formats) > 1:
        shown = ", ".join(f"{checkpoint.format} in {checkpoint.path}" for checkpoint in inputs)
        found.append(
            f"the inputs' metadata formats differ ({shown}): if one stores Linear weights transposed, square ones"
            " merge wrongly"
        )
    real = [os.path.realpath(checkpoint.path) for checkpoint in inputs]
    for path in sorted({checkpoint.path for checkpoint in inputs if real.count(os.path.realpath(checkpoint.path)) > 1}):
        found.append(f"{path} is given more than once")
    if not os.path.isfile(os.path.join(donor.folder, "config.json")):
        found.append(
            "no input has a config.json, so the output won't either; loaders need it: --config_from says where it is"
        )
    elif "model_type" in donor.config and not donor.config.get("architectures"):
        found.append(f"{donor.folder}/config.json names no architectures, which PaddleNLP and PaddleFormers need to load it")
    return found + _different_settings(inputs, donor)


def _different_settings(inputs: Sequence[Checkpoint], donor: Donor) -> list[str]:
    """Where an input's config.json has its weights used otherwise than the output's will."""
    found = []
    for checkpoint in inputs:
        config = read_config(checkpoint.folder)
        pairs = [(name, setting(config, name), setting(donor.config, name)) for name in SETTINGS]
        differing = [
            f"{name} {its} (not {other})" for name, its, other in pairs if None not in (its, other) and its != other
        ]
        if differing:
            found.append(
                f"{checkpoint.path} was trained with {', '.join(differing)}: the output gets config.json from {donor.folder}"
            )
    return found


def setting(config: Mapping[str, Any], name: str) -> Any:
    """What a config says of one of SETTINGS; None if it doesn't."""
    rope = config.get("rope_parameters")  # where transformers 5 writes them
    value = config.get(name)
    return rope.get(name) if value is None and isinstance(rope, dict) else value
