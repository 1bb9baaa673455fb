"""Tell which tensors Paddle's layouts store transposed to Hugging Face's.

torch's Linear layers hold [out, in], Paddle's [in, out]. Embeddings, convolutions and biases are the same in both; so are
parameters that a model multiplies itself, among them the routers of some families and the experts that are one tensor of
three dimensions. Sources: PaddleFormers 1.2.0's _gen_aoa_config (`.weight^T`), PaddleNLP 3.0.0b4's _get_name_mappings
("transpose"); tests/loaders/test_families.py compares with what the libraries load.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..checkpoints.names import EMBEDDINGS, is_linear, last_word

# Families whose router is the same in all layouts: `mlp.gate`, and GPT-OSS' `mlp.router`.
_PLAIN_ROUTERS = {
    "gate": ("glm4_moe", "glm4v_moe", "glm4v_moe_text", "kimi_k2", "minimax_m2", "deepseek_v4", "ernie4_5_moe_vl"),
    "router": ("gpt_oss",),
}
_TURNED_ROUTERS = {"router": ("jamba",)}
# Families whose experts are one tensor, [experts, in, out] in all layouts: `experts.gate_up_proj` and `experts.down_proj`.
_STACKED = ("gpt_oss", "qwen3_vl_moe", "qwen3_vl_moe_text")
_EXPERTS = ("gate_up_proj", "down_proj")
_CONVOLUTIONS = ("conv1d", "patch_embedding", "downsample")


def is_transposed(name: str, shape: Sequence[int], family: Any) -> bool | None:
    """Return whether Paddle's layouts store a tensor transposed to Hugging Face's; None if that isn't known.

    shape: in any layout; only the number of dimensions counts. family: config.json's model_type. lm_head isn't looked at:
    it depends on the library, and on whether it is tied.
    """
    *_, parent, word, kind = ["", "", *name.split(".")]
    if len(shape) < 2 or kind.endswith("bias") or (kind == "weight" and _is_table(name)):
        return False
    if kind == "weight" and len(shape) == 2:
        if family in _PLAIN_ROUTERS.get(word, ()):
            return False
        return True if is_linear(name) or family in _TURNED_ROUTERS.get(word, ()) else None
    if kind == "weight":
        return False if word in _CONVOLUTIONS or (parent, word) == ("patch_embed", "proj") else None
    if len(shape) == 3 and word == "experts" and kind in _EXPERTS and family in _STACKED:
        return False
    return None


def _is_table(name: str) -> bool:
    """Return whether a weight is an embedding, of tokens or of positions: a row for each."""
    word = last_word(name)
    return word in EMBEDDINGS or word.endswith(("position_embedding", "pos_embed"))
