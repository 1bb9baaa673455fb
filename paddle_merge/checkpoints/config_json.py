"""Read what a model's config.json says about its weights."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from .json_files import read_json
from .tensors import Checkpoint

TIED_BY_DEFAULT = ("gemma", "cohere")  # their configs leave tie_word_embeddings out where it is true


def read_config(folder: str) -> Mapping[str, Any]:
    """A folder's config.json, with what it says of its language model on top; empty if there is none."""
    path = os.path.join(folder, "config.json")
    config = read_json(path) if os.path.isfile(path) else {}
    text = config.get("text_config") if isinstance(config, dict) else None
    return {**config, **text} if isinstance(text, dict) else config if isinstance(config, dict) else {}


def is_tied(checkpoint: Checkpoint, config: Mapping[str, Any]) -> bool:
    """Whether lm_head is the embedding: as config.json says, else by the model's type, else if there is no lm_head."""
    says = config.get("tie_word_embeddings")
    if isinstance(says, bool):
        return says
    return str(config.get("model_type")).startswith(TIED_BY_DEFAULT) or "lm_head.weight" not in checkpoint.tensors


def has_language_head(config: Mapping[str, Any]) -> bool:
    """Whether the model predicts words, with its embedding if that is tied; yes if config.json doesn't say what it is."""
    names = config.get("architectures")
    words = ("CausalLM", "LMHead", "MaskedLM", "ConditionalGeneration")
    return not isinstance(names, list) or not names or any(word in str(name) for name in names for word in words)


def widths(config: Mapping[str, Any]) -> dict[str, int]:
    """The widths of layers, and of one attention head, that config.json tells."""

    def number(name: str) -> int:
        value = config.get(name)
        return value if type(value) is int and value > 0 else 0

    hidden, heads = number("hidden_size"), number("num_attention_heads")
    width = number("head_dim") or (hidden // heads if heads else 0)
    kv = number("num_key_value_heads") or (0 if config.get("num_key_value_heads") else heads)
    sizes = {"hidden": hidden, "intermediate": number("intermediate_size"), "heads": heads * width, "kv": kv * width}
    sizes["head"] = width
    sizes["gate_up"] = 2 * sizes["intermediate"]
    sizes["qkv"] = sizes["heads"] + 2 * sizes["kv"] if sizes["kv"] else 0
    return {name: size for name, size in sizes.items() if size}
