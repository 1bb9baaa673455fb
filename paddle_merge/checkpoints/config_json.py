"""Read a model's config.json, and what it says about the model's weights."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from ..errors import CheckpointError
from .json_files import read_json
from .tensors import Checkpoint

TIED_BY_DEFAULT = ("gemma", "cohere")  # model types whose config.json omits tie_word_embeddings when it is true
_CODE = re.compile(r"[\w-]+(\.[\w-]+)+")  # a module, and a class in it


def read_config(folder: str) -> Mapping[str, Any]:
    """Return a folder's config.json, updated with its text_config; an empty mapping if there is none.

    Its own tie_word_embeddings counts for the whole model, whatever text_config says. Raises CheckpointError if the file
    can't be read, or holds anything but an object.
    """
    config = _read(folder)
    text = config.get("text_config")
    if not isinstance(text, dict):
        return config
    own = {name: config[name] for name in ("tie_word_embeddings",) if isinstance(config.get(name), bool)}
    return {**config, **text, **own}


def model_type(folder: str) -> str:
    """Return the type of the whole model, which its text_config may call otherwise; "" if there is none."""
    return str(_read(folder).get("model_type", ""))


def _read(folder: str) -> dict[str, Any]:
    """Return a folder's config.json as it is; an empty dict if there is none. Raises CheckpointError."""
    path = os.path.join(folder, "config.json")
    config = read_json(path) if os.path.isfile(path) else {}
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: holds no JSON object {{...}}, so it is no model's config.json; replace or remove it")
    return config


def code_files(config: Any) -> list[str]:
    """Return the files with Python code that a config's auto_map names ("modeling_x.XModel"), but for those of other
    repositories ("owner/name--modeling_x.XModel") and outside the model's folder ("../modeling_x.XModel")."""
    mapped = config.get("auto_map") if isinstance(config, dict) else None
    found = set()
    for value in mapped.values() if isinstance(mapped, dict) else ():
        for name in value if isinstance(value, list) else [value]:
            if isinstance(name, str) and _CODE.fullmatch(name) and "--" not in name:
                found.add(name.rpartition(".")[0].replace(".", "/") + ".py")
    return sorted(found)


def module_folders(modules: Any) -> list[str]:
    """Return the folders within a sentence-transformers model that its modules.json lists."""
    paths = [one.get("path") for one in modules if isinstance(one, dict)] if isinstance(modules, list) else []
    return [path for path in paths if isinstance(path, str) and path and path == os.path.basename(path) != ".."]


def is_tied(checkpoint: Checkpoint, config: Mapping[str, Any]) -> bool:
    """Return whether lm_head is tied to the embedding.

    config.json's tie_word_embeddings decides; if it is absent, the model's type; else whether there is no lm_head.
    """
    says = config.get("tie_word_embeddings")
    if isinstance(says, bool):
        return says
    return str(config.get("model_type")).startswith(TIED_BY_DEFAULT) or "lm_head.weight" not in checkpoint.tensors


def has_language_head(config: Mapping[str, Any]) -> bool:
    """Return whether the model has a language-model head (which may be tied to the embedding).

    By the class names in config.json's architectures; True if it has none.
    """
    names = config.get("architectures")
    words = ("CausalLM", "LMHead", "MaskedLM", "ConditionalGeneration")
    return not isinstance(names, list) or not names or any(word in str(name) for name in names for word in words)


def widths(config: Mapping[str, Any]) -> dict[str, int]:
    """Return the widths in elements that config.json gives; those that it doesn't give are left out.

    hidden, intermediate: of the model, and within its feed-forward layers. heads, kv: of all query heads, and of all key
    heads. head: of one attention head. gate_up, qkv: of fused gate and up, and fused query, key and value. moe, moe_gate_up:
    within an expert of a mixture. experts: the number of experts, which is the width of a router.
    """

    def number(name: str) -> int:
        """Return a positive int of config.json; 0 if it has none of this name."""
        value = config.get(name)
        return value if type(value) is int and value > 0 else 0

    hidden, heads = number("hidden_size"), number("num_attention_heads")
    width = number("head_dim") or (hidden // heads if heads else 0)
    kv = number("num_key_value_heads") or (0 if config.get("num_key_value_heads") else heads)
    sizes = {"hidden": hidden, "intermediate": number("intermediate_size"), "heads": heads * width, "kv": kv * width}
    sizes["head"] = width
    sizes["gate_up"] = 2 * sizes["intermediate"]
    sizes["moe"] = number("moe_intermediate_size")
    sizes["moe_gate_up"] = 2 * sizes["moe"]
    counts = ("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts")
    sizes["experts"] = next(filter(None, map(number, counts)), 0)
    sizes["qkv"] = sizes["heads"] + 2 * sizes["kv"] if sizes["kv"] else 0
    return {name: size for name, size in sizes.items() if size}
