"""Parse the names of tensors: the layer and its stack, and the kind of tensor; and letter the checkpoints of a table.

A stack is a sequence of numbered layers, such as "model.layers". A model may have several (text, vision, audio).
"""

from __future__ import annotations

import functools
import re
import string
from collections.abc import Iterable, Iterator

LAYOUTS = ("hf", "paddlenlp", "paddleformers")  # see conversion/layout.py
HEAD = "lm_head.weight"
EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embeddings")  # last words of embeddings' names
TOKEN_EMBEDDINGS = (*EMBEDDINGS, "embed_in", "tok_embeddings", "shared")  # also of models that no layout is known for
# Linear layers: the last word of their name -> (rows, columns) of their weight in Hugging Face's layout, as keys of
# config_json.widths().
LINEARS: dict[str, tuple[str, str] | None] = {
    "q_proj": ("heads", "hidden"),
    "k_proj": ("kv", "hidden"),
    "v_proj": ("kv", "hidden"),
    "o_proj": ("hidden", "heads"),
    "qkv_proj": ("qkv", "hidden"),
    "gate_proj": ("intermediate", "hidden"),
    "up_proj": ("intermediate", "hidden"),
    "down_proj": ("hidden", "intermediate"),
    "gate_up_fused_proj": ("gate_up", "hidden"),
    "up_gate_proj": ("gate_up", "hidden"),
    "gate_up_proj": ("gate_up", "hidden"),
    "gate": None,  # the router of a mixture of experts: one row per expert
    "shared_expert_gate": None,
}
# Linear layers whose size config.json doesn't give.
OTHER_LINEARS = (
    *("out_proj", "fc1", "fc2", "dense"),
    *("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj"),  # DeepSeek's latent attention
    *("w1", "w2", "w3"),  # Mixtral's experts
    *("in_proj_qkvz", "in_proj_ba"),  # Qwen3-Next's linear attention
    *("qkv", "proj", "linear_1", "linear_2", "linear_fc1", "linear_fc2"),  # vision towers and projectors
    "eh_proj",  # prediction of further tokens
)
_NUMBERED_LINEARS = ("mlp", "mtp_linear_proj")  # lists and sequences of layers whose matrices are those of Linear layers
MOST_NAMES = 1 << 17  # of which it is kept what they say: all models have the same names, and all steps of a plan ask
_LAYER = re.compile(r"((?:.*?\.)?(?:layers?|h|blocks?))\.(\d+)(?=\.)")


@functools.lru_cache(MOST_NAMES)
def layer_of(name: str) -> tuple[str, int] | None:
    """Return the stack and the layer's number in it; None if the tensor is in no layer.

    "model.layers.3.mlp.up_proj.weight" -> ("model.layers", 3)
    """
    found = _LAYER.match(name)
    return (found[1], int(found[2])) if found else None


def in_layer(name: str, number: int) -> str:
    """Return the name of the same tensor in layer `number` of its stack. `name` must be in a layer."""
    return _LAYER.sub(rf"\g<1>.{number}", name, count=1)


def pattern_of(name: str) -> str:
    """Return the name with "*" in place of the layer's number; as it is if the tensor is in no layer."""
    return _LAYER.sub(r"\1.*", name, count=1) if _LAYER.match(name) else name


def word_of(name: str) -> str:
    """Return the kind of a tensor for tables: the last word of its name, without "weight" but with "bias", and no numbers.

    "model.layers.3.mlp.up_proj.weight" -> "up_proj"; "model.layers.3.self_attn.q_proj.bias" -> "q_proj.bias"
    """
    words = [word for word in name.split(".") if not word.isdecimal()] or [name]
    if words[-1] == "weight" and len(words) > 1:
        return words[-2]
    return ".".join(words[-2:]) if words[-1] in ("bias", "weight") else words[-1]


def stacks(names: Iterable[str]) -> dict[str, int]:
    """Return the stacks of layers in these names, in order of appearance, with the number of layers that each has."""
    found: dict[str, set[int]] = {}
    for layer in filter(None, map(layer_of, names)):
        found.setdefault(layer[0], set()).add(layer[1])
    return {stack: len(numbers) for stack, numbers in found.items()}


def letters() -> Iterator[str]:
    """Yield A to Z, then A2 to Z2, and so on: short names for the checkpoints of a table."""
    number = 1
    while True:
        yield from (letter if number == 1 else f"{letter}{number}" for letter in string.ascii_uppercase)
        number += 1


def is_linear(name: str) -> bool:
    """Return whether this is certainly the weight of a Linear layer if it is a matrix, by the last word of its name."""
    *_, before, word, kind = ["", "", *name.split(".")]
    known = before in _NUMBERED_LINEARS if word.isdecimal() else word in LINEARS or word in OTHER_LINEARS
    return kind == "weight" and known


def is_correction(name: str) -> bool:
    """Return whether the tensor is what a router adds to the scores of experts before it chooses some.

    transformers keeps it in float32 in models of any dtype: the scores of experts differ by less than bfloat16 tells apart.
    """
    return name.endswith(".e_score_correction_bias")


@functools.lru_cache(MOST_NAMES)
def last_word(name: str) -> str:
    """Return the name of the module that holds the tensor: "q_proj" for "model.layers.0.self_attn.q_proj.weight"."""
    return (["", *name.split(".")])[-2]
