"""Arrange the merged adapter: the names, shapes and dtypes of its tensors, and its config file.

extract_lora/adapter_files.py says what the formats are. Here layers may also be embeddings (PEFT only) and convolutions, and
the config file takes over what says which base model and task the adapters are for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ...checkpoints.adapters import Adapter
from ...checkpoints.formats.folder import ADAPTER_CONFIGS
from ...checkpoints.formats.header import Held
from ...dtypes import DType
from ...records import record
from ...run.output.disk import json_bytes
from ..extract_lora.adapter_files import NewAdapter, arranged, last_words, module_of
from .base_model import BaseModel
from .factors import MergedLayer
from .layers import Layer
from .whole import Whole

# Fields of adapter_config.json that the output takes over from the first adapter of PEFT.
_TAKEN_OVER = ("base_model_name_or_path", "revision", "auto_mapping", "fan_in_fan_out", "ensure_weight_tying")
# Fields with which target_modules means other layers than those of these names.
_CHOOSING = ("layers_to_transform", "layers_pattern", "exclude_modules")
_BASES = ("base_model_name_or_path", "base_model_name")


@record(frozen=True)
class Arrangement:
    """What is to be arranged. format: one of LAYOUTS. ranks: of each layer by name. scale: of all layers. dtype: of their
    matrices. tokenizer: the content of its files by name."""

    format: str
    adapters: Sequence[Adapter]
    base: BaseModel | None
    base_path: str | None
    layers: Sequence[Layer]
    ranks: Mapping[str, int]
    whole: Sequence[Whole]
    scale: float
    dtype: DType
    tokenizer: Mapping[str, bytes]

    @property
    def rank(self) -> int:
        """The highest rank; in Paddle's formats, that of all layers, with zeros where one needs less."""
        return max(self.ranks.values())

    @property
    def has_biases(self) -> bool:
        return any(layer.has_bias for layer in self.layers)


def arrange(contents: Arrangement) -> NewAdapter:
    """Return the adapter that is to be written, without the elements of its tensors."""
    held = [
        Held(name, contents.dtype, shape, math.prod(shape) * contents.dtype.itemsize)
        for layer in contents.layers
        for name, shape in _shapes(layer, contents)
    ]
    for one in contents.whole:
        size = math.prod(one.shape) * one.dtype.itemsize
        held.append(Held(whole_name(one, contents), one.dtype, one.shape, size))
    kind = "peft" if contents.format == "peft" else "paddle"
    config = _peft_config(contents) if kind == "peft" else _paddle_config(contents)
    return arranged(contents.format, held, {**contents.tokenizer, ADAPTER_CONFIGS[kind]: json_bytes(config)})


def whole_name(one: Whole, contents: Arrangement) -> str:
    """Return the name that the output has for a whole tensor."""
    if contents.format != "peft":
        return one.name
    module, word = module_of(one.name), one.name.rpartition(".")[2]
    inner = "base_layer." if module in contents.ranks else ""
    return f"base_model.model.{module}.{inner}{word}" if module else f"base_model.model.{word}"


def tensors_of(layer: Layer, merged: MergedLayer, contents: Arrangement) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (name, elements) of a layer's tensors, in the shapes that `arrange` gives them."""
    a, b, raw = merged.a, merged.b, contents.dtype.raw
    if contents.format != "peft":
        missing = contents.rank - merged.rank
        a, b = np.pad(a, ((0, missing), (0, 0))), np.pad(b, ((0, 0), (0, missing)))
        if layer.kind == "linear":
            a, b = a.T, b.T
    bias = merged.bias if merged.bias is not None else np.zeros(layer.shape[0], raw)
    for (name, shape), value in zip(_shapes(layer, contents), (a, b, bias), strict=False):
        yield name, np.ascontiguousarray(value).reshape(shape)


def _shapes(layer: Layer, contents: Arrangement) -> list[tuple[str, tuple[int, ...]]]:
    """Return (name, shape) of a layer's A and B, and of its bias if any layer has one."""
    peft = contents.format == "peft"
    rank = contents.ranks[layer.name] if peft else contents.rank
    a, b = (rank, *layer.a_shape), (layer.b_shape[0], rank, *layer.b_shape[1:])
    if not peft:
        linear = layer.kind == "linear"
        return [(f"{layer.name}.lora_A", a[::-1] if linear else a), (f"{layer.name}.lora_B", b[::-1] if linear else b)]
    module = f"base_model.model.{layer.name}"
    if layer.kind == "embedding":
        return [(f"{module}.lora_embedding_A", a), (f"{module}.lora_embedding_B", b)]
    found: list[tuple[str, tuple[int, ...]]] = [(f"{module}.lora_A.weight", a), (f"{module}.lora_B.weight", b)]
    return [*found, (f"{module}.lora_B.bias", b[:1])] if contents.has_biases else found


def _peft_config(contents: Arrangement) -> dict[str, Any]:
    """Return the content of adapter_config.json."""
    first: Mapping[str, Any] = next((one.config for one in contents.adapters if one.kind == "peft"), {})
    modules = {module_of(one.name) for one in contents.whole if not one.name.endswith(".bias")} - contents.ranks.keys()
    saved = modules if contents.base is not None else _listed(contents.adapters, "modules_to_save") or set()
    biases = any(module_of(one.name) not in modules and one.name.endswith(".bias") for one in contents.whole)
    others = {_pattern(name, contents): rank for name, rank in contents.ranks.items() if rank != contents.rank}
    config = {
        "peft_type": "LORA",
        "task_type": first.get("task_type") if first else "CAUSAL_LM",
        **{name: first[name] for name in _TAKEN_OVER if first.get(name) is not None},
        "base_model_name_or_path": _base_of(contents),
        "r": contents.rank,
        "lora_alpha": _number(contents.rank * contents.scale),
        "rank_pattern": others,
        "alpha_pattern": {name: _number(rank * contents.scale) for name, rank in others.items()},
        "target_modules": _targets(contents),
        "modules_to_save": sorted(saved) or None,
        "bias": "all" if biases else "none",
        "lora_bias": contents.has_biases,
        "lora_dropout": 0.0,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "inference_mode": True,
    }
    return {"fan_in_fan_out": False, **config}


def _paddle_config(contents: Arrangement) -> dict[str, Any]:
    """Return the content of lora_config.json."""
    own = _listed(contents.adapters, "target_modules") if contents.base is None else None
    names = [layer.name for layer in contents.layers]
    if own is None and contents.base is not None:
        own = {rf".*\.{re.escape(word)}" for word in last_words(names, contents.base.tensors)}
    return {
        "base_model_name_or_path": _base_of(contents),
        "r": contents.rank,
        "lora_alpha": _number(contents.rank * contents.scale),
        "scaling": contents.scale,
        "target_modules": sorted(own or ()) or [re.escape(name) for name in names],
        "trainable_modules": [re.escape(one.name) for one in contents.whole] or None,
        "dtype": contents.dtype.name,
        "lora_dropout": 0.0,
        "rslora": False,
    }


def _targets(contents: Arrangement) -> list[str]:
    """Return PEFT's target_modules: the adapters' own words if these choose exactly by name, else the layers' names."""
    names = [layer.name for layer in contents.layers]
    if contents.base is not None:
        return last_words(names, contents.base.tensors) or names
    words = _listed(contents.adapters, "target_modules")
    if words is None or any(one.config.get(field) for one in contents.adapters for field in _CHOOSING):
        return names
    covered = all(any(name == word or name.endswith(f".{word}") for word in words) for name in names)
    return sorted(words) if covered else names


def _pattern(name: str, contents: Arrangement) -> str:
    """Return a regular expression of ranks for a layer's name; PEFT compares it with the ends of names too."""
    return ("^" if any(other.endswith(f".{name}") for other in contents.ranks) else "") + re.escape(name)


def _listed(adapters: Sequence[Adapter], field: str) -> set[str] | None:
    """Return all words of a field that is a list in every adapter that has it; None if it isn't, or if none has it."""
    lists = [one.config[field] for one in adapters if one.config.get(field) is not None]
    if not lists or not all(isinstance(words, list) and all(isinstance(word, str) for word in words) for words in lists):
        return None
    return {word for words in lists for word in words}


def base_named(adapter: Adapter) -> str | None:
    """Return the path or name of the base model that an adapter's config gives."""
    return next((adapter.config[name] for name in _BASES if isinstance(adapter.config.get(name), str)), None)


def _base_of(contents: Arrangement) -> str | None:
    return contents.base_path or next((name for one in contents.adapters if (name := base_named(one))), None)


def _number(value: float) -> float | int:
    """Return a whole number as an int, as libraries write alpha."""
    return int(value) if value == int(value) else value
