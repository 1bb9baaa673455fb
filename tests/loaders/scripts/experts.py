"""Write tiny mixtures of experts, and the same with experts and neurons in another order; or load merged ones. It is run in
the environment of transformers.

    experts.py save FOLDER    writes FOLDER/NAME and FOLDER/NAME-scrambled for each family, as transformers saves them;
                              NAME-memory and NAME-scrambled-memory, the state dicts as they are in memory; and NAME.npz:
                              what both compute
    experts.py load FOLDER    loads every FOLDER/NAME-out*, and writes NAME-out*.npz: what it computes
"""

from __future__ import annotations

import copy
import json
import os
import sys
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import save_file

EXPERTS, HIDDEN, INNER = 6, 16, 12
SMALL = {
    "vocab_size": 40, "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 4, "num_experts_per_tok": 2, "tie_word_embeddings": False,
}  # fmt: skip
MLA = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 4}
# Name -> class, config's class, settings; how experts are stored in memory: [E, in, out], and gate and up in turn.
FAMILIES: dict[str, tuple[str, str, dict[str, Any], bool, bool]] = {
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {"num_local_experts": EXPERTS}, False, False),
    "qwen3_moe": (
        "Qwen3MoeForCausalLM",
        "Qwen3MoeConfig",
        {"num_experts": EXPERTS, "moe_intermediate_size": INNER, "decoder_sparse_step": 1},
        False,
        False,
    ),
    "deepseek_v3": (
        "DeepseekV3ForCausalLM",
        "DeepseekV3Config",
        {
            **MLA, "n_routed_experts": EXPERTS, "moe_intermediate_size": INNER, "n_group": 2, "topk_group": 1,
            "first_k_dense_replace": 0, "num_key_value_heads": 4, "n_shared_experts": 1,
        },
        False,
        False,
    ),
    "granitemoe": ("GraniteMoeForCausalLM", "GraniteMoeConfig", {"num_local_experts": EXPERTS}, False, False),
    "gpt_oss": (
        "GptOssForCausalLM",
        "GptOssConfig",
        {"num_local_experts": EXPERTS, "layer_types": ["full_attention"] * 2},
        True,
        True,
    ),
    "llama4_text": (
        "Llama4ForCausalLM",
        "Llama4TextConfig",
        {"num_local_experts": EXPERTS, "interleave_moe_layer_step": 1, "intermediate_size_mlp": 9},
        True,
        False,
    ),
}  # fmt: skip
TOKENS = torch.tensor([[5, 9, 2, 33, 17, 4, 8, 1, 30, 21]])


def computed(model: Any) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(input_ids=TOKENS).logits.float().numpy()


def random_model(name: str) -> Any:
    kind, config, settings, _, _ = FAMILIES[name]
    torch.manual_seed(0)
    model = getattr(transformers, kind)(getattr(transformers, config)(**{**SMALL, **settings}))
    with torch.no_grad():
        for key, values in model.state_dict().items():
            if values.dtype.is_floating_point and "norm" not in key:
                values.copy_(torch.randn(values.shape) * 0.3)
    return model


def scramble(model: Any, name: str) -> None:
    _, _, _, transposed, in_turn = FAMILIES[name]
    groups = 2 if name == "deepseek_v3" else 1
    random = np.random.default_rng(4)
    for layer in [module for module in model.modules() if hasattr(module, "experts")]:
        size = EXPERTS // groups
        order = torch.tensor([g * size + e for g in random.permutation(groups) for e in random.permutation(size)])
        held = {key: values for key, values in layer.state_dict().items() if "shared" not in key}
        with torch.no_grad():
            for values in held.values():
                (axis,) = [axis for axis, count in enumerate(values.shape) if count == EXPERTS] or [None]
                if axis is not None:
                    values.copy_(values.index_select(axis, order).clone())
            for expert in range(EXPERTS):
                neurons = torch.tensor(random.permutation(INNER))
                both = torch.stack([2 * neurons, 2 * neurons + 1], 1).reshape(-1)
                both = both if in_turn else torch.cat([neurons, neurons + INNER])
                for key, values in held.items():
                    matrix, up = values[expert] if key.startswith("experts.") else None, "gate_up" in key
                    if matrix is None or key.endswith("down_proj_bias"):
                        continue
                    axis = 0 if matrix.dim() == 1 else int(up == transposed)
                    matrix.copy_(matrix.index_select(axis, both if up else neurons).clone())


def save(folder: str) -> None:
    for name in FAMILIES:
        model, logits = random_model(name), []
        for ending in ("", "-scrambled"):
            if ending:
                model = copy.deepcopy(model)
                scramble(model, name)
            path = os.path.join(folder, name + ending)
            model.save_pretrained(path)
            os.makedirs(f"{path}-memory")
            state = {key: values.contiguous() for key, values in model.state_dict().items()}
            save_file(state, f"{path}-memory/model.safetensors", {"format": "pt"})
            with open(f"{path}-memory/config.json", "w", encoding="utf-8") as file:
                json.dump(model.config.to_dict(), file)
            logits.append(computed(model))
        np.savez(os.path.join(folder, f"{name}.npz"), *logits)


def load(folder: str) -> None:
    for entry in sorted(os.listdir(folder)):
        name, out, _ = entry.partition("-out")
        if name in FAMILIES and out and os.path.isdir(path := os.path.join(folder, entry)):
            model = getattr(transformers, FAMILIES[name][0]).from_pretrained(path, dtype=torch.float32)
            np.savez(f"{path}.npz", computed(model))


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    {"save": save, "load": load}[sys.argv[1]](sys.argv[2])
