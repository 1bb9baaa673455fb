"""Write and open tiny models of PaddleNLP's families; see families.py."""

from __future__ import annotations

import importlib
import sys

from families import Library, text
from job import work
from paddlenlp.peft import LoRAConfig, LoRAModel
from paddlenlp.trl.llm_utils import get_lora_target_modules
from paddlenlp.utils.log import logger

SAVES = {"paddle": {"safe_serialization": True}}
LOADS = {"paddlenlp": {}, "hf": {"convert_from_torch": True}}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
LATENT = {"q_lora_rank": 12, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8}
GROUPS = {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}
# Family, which is its folder in paddlenlp.transformers -> (config class, model class, settings).
FAMILIES = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", text()),
    "mistral": ("MistralConfig", "MistralForCausalLM", text()),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", text()),
    "gemma": ("GemmaConfig", "GemmaForCausalLM", text(head_dim=8)),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM", text(num_local_experts=4, num_experts_per_tok=2)),
    "qwen2_moe": (
        "Qwen2MoeConfig",
        "Qwen2MoeForCausalLM",
        text(num_experts=4, shared_expert_intermediate_size=40, **EXPERTS),
    ),
    "deepseek_v2": (
        "DeepseekV2Config",
        "DeepseekV2ForCausalLM",
        {**text(num_nextn_predict_layers=0, **EXPERTS, **GROUPS, **LATENT), "num_key_value_heads": 4},
    ),
    "deepseek_v3": (
        "DeepseekV3Config",
        "DeepseekV3ForCausalLM",
        {**text(num_nextn_predict_layers=0, **EXPERTS, **GROUPS, **LATENT), "num_key_value_heads": 4},
    ),
}


def classes(family: str) -> tuple[type, type]:
    configured, model_class, _ = FAMILIES[family]
    folder = f"paddlenlp.transformers.{family}"
    of_config, of_model = (importlib.import_module(f"{folder}.{name}") for name in ("configuration", "modeling"))
    return getattr(of_config, configured), getattr(of_model, model_class)


def build(family: str):
    configured, model_class = classes(family)
    return model_class(configured(**FAMILIES[family][2]))


def opened(folder: str, family: str, layout: str):
    return classes(family)[1].from_pretrained(folder, dtype="float32", **LOADS[layout])


def targets(model) -> list[str]:
    """The library's recipe, where it has one."""
    try:
        return get_lora_target_modules(model)
    except ValueError:
        return [".*self_attn.*_proj.*", ".*mlp.*_proj.*"]


library = Library(build, opened, SAVES, (LoRAConfig, LoRAModel), targets)
adapt, load = library.make, library.load

if __name__ == "__main__":
    logger.set_level("ERROR")
    work(sys.modules[__name__])
