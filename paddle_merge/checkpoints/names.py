"""What tensors' names tell: which layer of which stack, and which kind of tensor. And short names for checkpoints."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Iterator

_LAYER = re.compile(r"((?:.*?\.)?(?:layers?|h|blocks?))\.(\d+)(?=\.)")


def layer_of(name: str) -> tuple[str, int] | None:
    """The stack and the number in it: ("model.layers", 3) of "model.layers.3.mlp.up_proj.weight"; None if it is in none."""
    found = _LAYER.match(name)
    return (found[1], int(found[2])) if found else None


def in_layer(name: str, number: int) -> str:
    """What the tensor `name`, which is in some layer, is called in layer `number` of its stack."""
    return _LAYER.sub(rf"\g<1>.{number}", name, count=1)


def pattern_of(name: str) -> str:
    """The name with a star for the layer's number."""
    return _LAYER.sub(r"\1.*", name, count=1) if _LAYER.match(name) else name


def word_of(name: str) -> str:
    """The last word but "weight": "up_proj" of "model.layers.3.mlp.up_proj.weight", "q_proj.bias", "lm_head"."""
    words = [word for word in name.split(".") if not word.isdecimal()] or [name]
    if words[-1] == "weight" and len(words) > 1:
        return words[-2]
    return ".".join(words[-2:]) if words[-1] in ("bias", "weight") else words[-1]


def stacks(names: Iterable[str]) -> dict[str, int]:
    """Stacks in order of appearance -> how many layers each has."""
    found: dict[str, set[int]] = {}
    for layer in filter(None, map(layer_of, names)):
        found.setdefault(layer[0], set()).add(layer[1])
    return {stack: len(numbers) for stack, numbers in found.items()}


def letters() -> Iterator[str]:
    """A to Z, then A2 ..."""
    number = 1
    while True:
        yield from (letter if number == 1 else f"{letter}{number}" for letter in string.ascii_uppercase)
        number += 1


LAYOUTS = ("hf", "paddlenlp", "paddleformers")
EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embeddings")
# Linear layers by the last word of their name -> (rows, columns) of their weight in HF's layout, by the names of widths().
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
    "gate": None,  # a mixture's router: as many rows as experts
    "shared_expert_gate": None,
}
OTHER_LINEARS = ("out_proj", "fc1", "fc2", "dense")  # their shapes tell that two checkpoints are laid out alike


def is_linear(name: str) -> bool:
    """Whether this is surely the weight of a Linear layer."""
    return name.endswith(".weight") and (last_word(name) in LINEARS or last_word(name) in OTHER_LINEARS)


def last_word(name: str) -> str:
    """The layer's own name: "q_proj" of "model.layers.0.self_attn.q_proj.weight"."""
    return (["", *name.split(".")])[-2]


HEAD = "lm_head.weight"
