"""Choose where the output's config.json and tokenizer come from."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..checkpoints.adapters import is_factor, kind_of
from ..checkpoints.config_json import is_tied, read_config, widths
from ..checkpoints.formats.folder import ADAPTER, shards_alone, single_file_names
from ..checkpoints.names import last_word
from ..checkpoints.tensors import Checkpoint
from ..conversion.inputs import SETTINGS, setting
from ..errors import CheckpointError
from ..parsing import shown, tensors_named
from ..records import record
from .loader_files import loader_files

UNSET = ("rope_scaling",)  # settings that are also different if only one config.json has them


@record(frozen=True)
class ConfigSource:
    """The folder of the output's config.json and tokenizer.

    config: the content of config.json, which also counts for inputs that have none; empty if there is none.
    note: a sentence for the user, if they aren't the base model's, or else the first model's.
    """

    folder: str
    config: Mapping[str, Any]
    note: str = ""


def find_config_source(inputs: Sequence[Checkpoint], based: bool, given: str | None) -> ConfigSource:
    """Return `given`, if any; else the first of the base model and the models that has a config.json.

    inputs: models in order, then the base if `based`. Raises CheckpointError if what is given doesn't fit.
    """
    if given is not None:
        return ConfigSource(given, _fitting(inputs, given), f"config.json and the tokenizer are taken from {given}")
    ordered = [inputs[-1], *inputs[:-1]] if based else list(inputs)
    own = ordered[0].folder
    folder = next((one.folder for one in ordered if os.path.isfile(os.path.join(one.folder, "config.json"))), own)
    note = f"{own} has no config.json, so it and the tokenizer are taken from {folder}" if folder != own else ""
    return ConfigSource(folder, read_config(folder), note)


def given_config(folder: str) -> Mapping[str, Any]:
    """Return config.json of the folder that --config_from names. Raises CheckpointError if a merge can't have it."""
    if not os.path.isfile(os.path.join(folder, "config.json")):
        fault = "has no config.json" if os.path.isdir(folder) else "no such folder"
        raise CheckpointError(f"--config_from {folder}: {fault}; give a folder that holds config.json and the tokenizer")
    return read_config(folder)


def _fitting(inputs: Sequence[Checkpoint], folder: str) -> Mapping[str, Any]:
    """Return config.json of `folder`. Raises CheckpointError if it is visibly that of another model."""
    config = given_config(folder)
    numbers = set(re.findall(r"\d+", json.dumps(config)))
    for name, entry in inputs[0].tensors.items():
        missing = [size for size in reversed(entry.shape) if str(size) not in numbers]
        if last_word(name) == "embed_tokens" and len(entry.shape) == 2 and missing:
            what = "width" if missing[0] == entry.shape[1] else "number of rows"
            raise CheckpointError(
                f"--config_from {folder}: its config.json is of another model: it doesn't mention {missing[0]}, the"
                f" {what} of tensor {name!r} in {inputs[0].path}"
            )
    for checkpoint in inputs:
        own = read_config(checkpoint.folder).get("tie_word_embeddings")
        ties = is_tied(checkpoint, config)
        if isinstance(own, bool) and own != ties:
            says, does = ("does", "does not") if ties else ("does not", "does")
            raise CheckpointError(
                f"--config_from {folder}: its config.json is of another model: it {says} tie lm_head to the embedding, which"
                f" {checkpoint.path} {does}"
            )
    return config


def warnings(inputs: Sequence[Checkpoint], config_source: ConfigSource) -> list[str]:
    """Return sentences on what is allowed but likely not meant."""
    found = []
    formats = {checkpoint.format for checkpoint in inputs}
    if len(formats) > 1:
        listed = ", ".join(f"{checkpoint.format} in {checkpoint.path}" for checkpoint in inputs)
        found.append(
            f"the inputs' metadata formats differ ({listed}): if one of them stores Linear weights transposed, square"
            " matrices are merged wrongly"
        )
    found += shards_alone([checkpoint.path for checkpoint in inputs])
    for path in dict.fromkeys(checkpoint.path for checkpoint in inputs if _holds_adapter(checkpoint.path)):
        found.append(
            f"{path} holds a LoRA adapter beside the model, which is merged without it: if it isn't folded in already, write"
            f" {path}+{path}"
        )
    found += _factors(inputs)
    real = [os.path.realpath(checkpoint.path) for checkpoint in inputs]
    for path in sorted({checkpoint.path for checkpoint in inputs if real.count(os.path.realpath(checkpoint.path)) > 1}):
        found.append(f"{path} is given more than once")
    if not os.path.isfile(os.path.join(config_source.folder, "config.json")):
        found.append(
            "no input has a config.json, so the output won't either; loaders need it: --config_from says where it is"
        )
    elif "model_type" in config_source.config and not config_source.config.get("architectures"):
        found.append(
            f"{config_source.folder}/config.json names no architectures, which PaddleNLP and PaddleFormers need to load it"
        )
    return [*found, *loader_files(config_source.folder)[1], *different_settings(inputs, config_source)]


def _factors(inputs: Sequence[Checkpoint]) -> list[str]:
    """Return a sentence if low-rank factors are merged, as of adapters' files or PaddleFormers' checkpoints with LoRA."""
    names = {name for checkpoint in inputs for name in checkpoint.tensors if is_factor(name)}
    if not names or len(inputs) < 2:
        return []
    are = "is a LoRA factor" if len(names) == 1 else "are LoRA factors"
    return [
        f"{tensors_named(sorted(names))} {are}, and each is merged for itself: products of averages are not the average of"
        " the products. merge-lora merges adapters; to merge the models, give each as BASE+ADAPTER, with adapters that are"
        " saved apart from the base"
    ]


def _holds_adapter(path: str) -> bool:
    """Return whether a path is a folder with a LoRA adapter's config and weights."""
    names = [one for name in single_file_names(ADAPTER) for one in (name, f"{name}.index.json")]
    return kind_of(path) is not None and any(os.path.isfile(os.path.join(path, name)) for name in names)


def _text(value: Any) -> str:
    return "unset" if value is None else shown(value) if isinstance(value, dict) else str(value)


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what config.json says on how weights are used, by name; None where it says nothing."""
    found = {name: setting(config, name) for name in (*SETTINGS, "max_position_embeddings", "id2label")}
    found["head_dim"] = found["head_dim"] or widths(config).get("head")
    own, rope = config.get("rope_scaling"), config.get("rope_parameters")  # transformers 5 writes the latter
    scaling = own if isinstance(own, dict) else rope if isinstance(rope, dict) else {}
    scaling = {"rope_type" if name == "type" else name: value for name, value in scaling.items()}
    scaling = {name: value for name, value in scaling.items() if name not in SETTINGS}
    found["rope_scaling"] = scaling if scaling.get("rope_type", "default") != "default" else None
    return found


def different_settings(inputs: Sequence[Checkpoint], config_source: ConfigSource) -> list[str]:
    """Return a sentence on each input whose config.json uses the weights in another way than the output's will."""
    found = []
    for checkpoint in inputs:
        config = read_config(checkpoint.folder)
        both = [(_settings(config), _settings(config_source.config))] if config else []
        differing = [
            f"{name} {_text(its[name])} (not {_text(other[name])})"
            for its, other in both
            for name in its
            if its[name] != other[name] and (name in UNSET or None not in (its[name], other[name]))
        ]
        if differing:
            found.append(
                f"{checkpoint.path} was trained with {', '.join(differing)}: the output gets config.json from"
                f" {config_source.folder}"
            )
    return found
