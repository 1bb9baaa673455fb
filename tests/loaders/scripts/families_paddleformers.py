"""Write and open tiny models of PaddleFormers' families; see families.py.

Families that use paddlefleet are tried in the library's own older classes (Qwen2ForCausalLMDeprecated and others); see
stand_in.py.
"""

from __future__ import annotations

import copy
import importlib
import sys

import paddle
import stand_in
from families import Library, text, vision
from job import work
from paddleformers.cli.utils.llm_utils import get_lora_target_modules
from paddleformers.peft import LoRAConfig, LoRAModel
from paddleformers.utils.log import logger

IN_PADDLE = {"save_checkpoint_format": "unified_checkpoint", "save_to_hf": False, "safe_serialization": True}
SAVES = {"hf": {}, "paddle": IN_PADDLE, "unified": {"save_checkpoint_format": "unified_checkpoint"}}
LOADS = {"hf": {}, "paddleformers": {"load_checkpoint_format": "unified_checkpoint", "convert_from_hf": False}}
ROPE = {"type": "default", "rope_type": "default", "rope_theta": 1e4}
MROPE = {**ROPE, "mrope_section": [1, 1, 2]}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
GROUPS = {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}
TOKENS = {"image_token_id": 60, "video_token_id": 61, "vision_start_token_id": 62, "vision_end_token_id": 63}
LATENT = {
    **{"q_lora_rank": 12, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8},
    "rope_parameters": {**ROPE, "factor": 1.0, "mscale_all_dim": 0},
}
LINEAR = {
    **{"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
    "layer_types": ["linear_attention", "full_attention"],
}
DEEP = {"num_position_embeddings": 16, "deepstack_visual_indexes": [1]}
# Family, which is its folder in paddleformers.transformers -> (config class, model class, settings).
FAMILIES = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", text()),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLMDeprecated", text()),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLMDeprecated", text(head_dim=8)),
    "ernie4_5": ("Ernie4_5Config", "Ernie4_5ForCausalLM", text()),
    "ernie4_5_moe": (
        "Ernie4_5_MoeConfig",
        "Ernie4_5_MoeForCausalLM",
        text(moe_num_experts=4, moe_k=2, moe_intermediate_size=24, moe_layer_start_index=1, moe_num_shared_experts=2),
    ),
    "gemma3_text": (
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        text(head_dim=8, tie_word_embeddings=True, query_pre_attn_scalar=8, sliding_window=16),
    ),
    "paddleocr_vl": (
        "PaddleOCRVLConfig",
        "PaddleOCRVLForConditionalGeneration",
        text(
            head_dim=8,
            rope_scaling=MROPE,
            vision_config={
                **{"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3},
                **{"image_size": 28, "patch_size": 14},
            },
        ),
    ),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", text(pad_token_id=0)),
    "gpt_oss": (
        "GptOssConfig",
        "GptOssForCausalLM",
        text(head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=16),
    ),
    "qwen2_moe": (
        "Qwen2MoeConfig",
        "Qwen2MoeForCausalLMDeprecated",
        text(num_experts=4, shared_expert_intermediate_size=40, **EXPERTS),
    ),
    "qwen3_moe": ("Qwen3MoeConfig", "Qwen3MoeForCausalLMDeprecated", text(head_dim=8, num_experts=4, **EXPERTS)),
    "qwen3_next": (
        "Qwen3NextConfig",
        "Qwen3NextForCausalLM",
        text(head_dim=8, num_experts=4, shared_expert_intermediate_size=40, **EXPERTS, **LINEAR),
    ),
    "glm4_moe": (
        "Glm4MoeConfig",
        "Glm4MoeForCausalLMDeprecated",
        text(head_dim=8, num_nextn_predict_layers=0, **EXPERTS, **GROUPS),
    ),
    "deepseek_v3": (
        "DeepseekV3Config",
        "DeepseekV3ForCausalLM",
        {**text(num_nextn_predict_layers=0, **EXPERTS, **GROUPS, **LATENT), "num_key_value_heads": 4},
    ),
    "qwen2_5_vl": (
        "Qwen2_5_VLConfig",
        "Qwen2_5_VLForConditionalGeneration",
        {
            "text_config": text(rope_scaling=MROPE, rope_parameters=MROPE),
            "vision_config": vision(window_size=8, fullatt_block_indexes=[1]),
            **TOKENS,
        },
    ),
    "qwen3_vl": (
        "Qwen3VLConfig",
        "Qwen3VLForConditionalGenerationDeprecated",
        {
            "text_config": text(head_dim=8, rope_scaling=MROPE, rope_parameters=MROPE),
            "vision_config": vision(**DEEP),
            **TOKENS,
        },
    ),
    "qwen3_vl_moe": (
        "Qwen3VLMoeConfig",
        "Qwen3VLMoeForConditionalGenerationDeprecated",
        {
            "text_config": text(head_dim=8, num_experts=4, rope_scaling=MROPE, rope_parameters=MROPE, **EXPERTS),
            "vision_config": vision(**DEEP),
            **TOKENS,
        },
    ),
}


def classes(family: str) -> tuple[type, type]:
    configured, model_class, _ = FAMILIES[family]
    folder = f"paddleformers.transformers.{family}"
    of_config, of_model = (importlib.import_module(f"{folder}.{name}") for name in ("configuration", "modeling"))
    return getattr(of_config, configured), getattr(of_model, model_class)


def on_cpu(config):
    """Without the fused kernels, which are a GPU's."""
    for part in (config, getattr(config, "text_config", None)):
        if part is not None:
            part.fuse_rms_norm = False
    return config


def build(family: str):
    configured, model_class = classes(family)
    settings = {"tie_word_embeddings": False, **copy.deepcopy(FAMILIES[family][2])}
    return model_class(on_cpu(configured(**settings)))


def opened(folder: str, family: str, layout: str):
    configured, model_class = classes(family)
    config = on_cpu(configured.from_pretrained(folder))
    return model_class.from_pretrained(folder, config=config, dtype="float32", **LOADS[layout])


def saves_adapters(family: str) -> dict[str, object]:
    """Those of Qwen2.5-VL hold uninitialised weights of the whole model, as the library saves them by default."""
    return SAVES["unified"] if family == "qwen2_5_vl" else {}


def checkpoint(model, folder: str) -> None:
    """As the Trainer saves one by default, with the config that it lacks."""
    paddle.distributed.save_state_dict(model.sharded_state_dict(), f"{folder}/model_state")
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)


stand_in.install()
lora = LoRAConfig, LoRAModel
library = Library(build, opened, SAVES, lora, get_lora_target_modules, saves_adapters, checkpoint)
adapt, load = library.make, library.load

if __name__ == "__main__":
    logger.set_level("ERROR")
    work(sys.modules[__name__])
