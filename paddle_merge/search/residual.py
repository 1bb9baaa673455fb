"""Find the tensors by which layers add to the residual stream, where a factor on the stream can be folded into them.

A path may multiply the stream by s_j where it enters layer j. With c_j = s_1 ... s_j and the stream h = c_j g, a layer that
normalises what it reads computes the same from h as from g, for c_j > 0: h + f(norm(h)) = c_j (g + f(norm(g)) / c_j). So
the same function is had without any factor on the stream, by 1/c_j times what layer j adds: the weights and biases of its
last linear maps (o_proj and down_proj in most models). The norm before the head cancels the last factor.

That is exact, but for the epsilon of the norms, where every reader of the stream normalises it and what is added isn't
normalised afterwards. FAMILIES lists models of which the logits were compared with those of an explicit forward pass
(tests/loaders/test_paths.py). Parallel attention and MLP, scaled embeddings (Gemma), factors on what layers add (Granite),
and mixtures of experts, each of whose experts is scaled, are among them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ..checkpoints.names import last_word, layer_of
from ..parsing import shown


def _each(names: str, filters: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    return dict.fromkeys(names.split(), filters)


_USUAL = ("o_proj", "down_proj")
# model_type -> filters on the names of the tensors of a layer that add to the residual stream.
FAMILIES: dict[str, tuple[str, ...]] = {
    **_each("llama mistral qwen2 qwen3 gemma granite phi3 olmo stablelm smollm3 ernie4_5 glm cohere", _USUAL),
    **_each("cohere2 nemotron helium seed_oss hunyuan_v1_dense arcee apertus gpt_oss olmoe dots1", _USUAL),
    **_each("qwen2_moe qwen3_moe deepseek_v2 deepseek_v3 glm4_moe ernie4_5_moe", _USUAL),
    **dict.fromkeys(("granitemoe", "granitemoeshared"), ("o_proj", "output_linear")),
    **dict.fromkeys(("gpt2", "gpt_bigcode"), ("c_proj",)),
    **dict.fromkeys(("bloom", "falcon"), ("self_attention.dense.", "dense_4h_to_h")),
    "gpt_neox": ("attention.dense.", "dense_4h_to_h"),
    **dict.fromkeys(("mixtral", "phimoe"), ("o_proj", "w2")),
    "opt": ("out_proj", "fc2"),
    "phi": ("self_attn.dense.", "fc2"),
    "starcoder2": ("o_proj", "c_proj"),
}
_STREAM = "its layers normalise the stream itself"
_AFTER = "its layers normalise what they add, so that a factor before that has no effect"
_DEEP = "a factor on what layers add depends on the number of layers"
REASONS = {
    **dict.fromkeys(("gemma2", "gemma3", "gemma3_text", "glm4"), _AFTER),
    **dict.fromkeys(("olmo2", "olmo3", "exaone4"), "its layers read the stream without a norm"),
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "distilbert", "ernie"), _STREAM),
    **dict.fromkeys(("minicpm", "minicpm3"), _DEEP),
}
_BLOOM = {"apply_residual_connection_post_layernorm": (False, "what its norms give is added to the stream")}
# config.json's entry -> the value with which a family is exact.
NEEDED: dict[str, dict[str, tuple[Any, str]]] = {
    "opt": {
        "do_layer_norm_before": (True, _STREAM),
        "_remove_final_layer_norm": (False, "it has no norm before the head"),
    },
    "gpt2": {"scale_attn_by_inverse_layer_idx": (False, "attention depends on the number of the layer")},
    "bloom": _BLOOM,
    "falcon": _BLOOM,
}
# The last words of the modules of a layer that only read the stream, or are inside of attention or an expert.
_READERS = """
    q_proj k_proj v_proj qkv_proj c_attn query_key_value q_norm k_norm q_a_proj q_b_proj kv_a_proj_with_mqa
    kv_b_proj q_a_layernorm kv_a_layernorm moe_statics act_fn attention_layernorm feedforward_layernorm ln_attn
    ln_mlp query_layernorm key_layernorm self_attn gate_proj up_proj gate_up_proj gate_up_fused_proj up_gate_proj
    c_fc fc1 dense_h_to_4h w1 w3 gate router layer shared_expert_gate experts input_linear input_layernorm
    post_attention_layernorm ln_1 ln_2 self_attn_layer_norm final_layer_norm rotary_emb attn attention bias
    masked_bias
"""
_READ = frozenset(_READERS.split())


def writers(config: Mapping[str, Any], names: Collection[str]) -> tuple[str, ...]:
    """Return filters that match the tensors by which layers add to the residual stream, and no others.

    config: the content of config.json. names: of all tensors. Raises ValueError with the reason if a factor on the stream
    can't be folded into them, or it isn't known whether it can.
    """
    family = str(config.get("model_type", ""))
    if family in REASONS:
        raise ValueError(f"{family}: {REASONS[family]}")
    if family not in FAMILIES:
        called = f"models of type {shown(family)}" if family else "a model without a model_type in config.json"
        raise ValueError(f"it isn't known whether that is exact for {called}; it is for {', '.join(FAMILIES)}")
    for entry, (value, reason) in NEEDED.get(family, {}).items():
        if config.get(entry, value) != value:
            raise ValueError(f"with {entry}: {config[entry]} in config.json, {reason}")
    found, layers = FAMILIES[family], dict[tuple[str, int], set[str]]()
    for name in names:
        if (layer := layer_of(name)) is None:
            continue
        writes = [one for one in found if one in name]
        layers.setdefault(layer, set()).update(writes)
        if not writes and last_word(name) not in _READ:
            raise ValueError(f"it isn't known whether {name!r}, which other {family} models don't have, adds to the stream")
    for (stack, number), its in layers.items():
        if missing := [one for one in found if one not in its]:
            raise ValueError(f"no tensor of {stack}.{number} has {missing[0]!r} in its name, as {family} models have")
    return found
