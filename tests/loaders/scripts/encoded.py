"""Write tiny models in bfloat16, and open merged ones that hold FP8 codes. Runs in the environment of transformers.

encoded.py save FOLDER    writes FOLDER/NAME-a and FOLDER/NAME-b for each model
encoded.py load FOLDER    opens FOLDER/NAME-fp8 and FOLDER/NAME-plain for each; writes NAME.json: how far the logits are
                          apart, and what transformers' quantiser makes of the average of a and b, beside the codes; in
                          rows.json how far the logits of FOLDER/qwen3-rows are
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, FineGrainedFP8Config
from transformers.integrations.finegrained_fp8 import Fp8Quantize

SIZES = {"hidden_size": 256, "intermediate_size": 384, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 500}
EXPERTS = {"moe_intermediate_size": 128, "num_experts_per_tok": 2}
QWEN3 = {**SIZES, "num_key_value_heads": 2, "head_dim": 64}
LATENT = {"q_lora_rank": 128, "kv_lora_rank": 64, "qk_rope_head_dim": 64, "qk_nope_head_dim": 64, "v_head_dim": 64}
ROUTED = {"n_routed_experts": 8, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1}
MODELS: dict[str, dict[str, Any]] = {
    "qwen3": {**QWEN3, "tie_word_embeddings": True},
    "qwen3_moe": {**QWEN3, **EXPERTS, "num_experts": 4, "decoder_sparse_step": 1, "tie_word_embeddings": False},
    "deepseek_v3": {**SIZES, **EXPERTS, **LATENT, **ROUTED, "num_key_value_heads": 4, "tie_word_embeddings": False},
}
TOKENS = torch.arange(40).reshape(2, 20) * 7 % 500


def save(folder: str) -> None:
    for name, settings in MODELS.items():
        for which in "ab":
            torch.manual_seed(ord(which))
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **settings))
            for parameter in model.parameters():
                parameter.data += 0.02 * torch.randn_like(parameter)
            model.to(torch.bfloat16).save_pretrained(f"{folder}/{name}-{which}")


def logits(folder: str, wide: bool = True, **options: Any) -> torch.Tensor:
    """Return what a model computes. wide: in float32, in which routers choose the same experts in spite of rounding."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", **options).eval()
    model = model.float() if wide else model
    with torch.no_grad():
        return model(TOKENS).logits.float()


class Quantizer:
    quantization_config = FineGrainedFP8Config()


def numbers(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    spread = scales.double().repeat_interleave(128, 0).repeat_interleave(128, 1)
    return codes.double() * spread[: codes.shape[0], : codes.shape[1]]


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return ((one - other).pow(2).mean().sqrt() / other.std()).item()


def load(folder: str) -> None:
    rows, plain = (logits(f"{folder}/qwen3-{which}", wide=False) for which in ("rows", "plain"))
    with open(f"{folder}/rows.json", "w") as file:
        json.dump(apart(rows, plain), file)
    for name in MODELS:
        coded = logits(f"{folder}/{name}-fp8", quantization_config=FineGrainedFP8Config(dequantize=True))
        plain = logits(f"{folder}/{name}-plain")
        ours, a, b = (load_file(f"{folder}/{name}-{which}/model.safetensors") for which in ("fp8", "a", "b"))
        found = {"apart": apart(coded, plain), "weights": 0, "other codes": 0, "our error": 0.0, "their error": 0.0}
        for scale in [name for name in ours if name.endswith("_scale_inv")]:
            weight = scale.removesuffix("_scale_inv")
            mean = (a[weight].float() + b[weight].float()) / 2
            theirs = Fp8Quantize(Quantizer())._quantize_one(weight, mean)
            found["weights"] += 1
            if scale in theirs:  # all blocks are whole
                codes = (ours[weight].view(torch.uint8) != theirs[weight].view(torch.uint8)).sum()
                found["other codes"] += codes.item()
                found["our error"] += (numbers(ours[weight], ours[scale]) - mean).pow(2).sum().item()
                found["their error"] += (numbers(theirs[weight], theirs[scale]) - mean).pow(2).sum().item()
        with open(f"{folder}/{name}.json", "w") as file:
            json.dump(found, file)


if __name__ == "__main__":
    {"save": save, "load": load}[sys.argv[1]](sys.argv[2])
