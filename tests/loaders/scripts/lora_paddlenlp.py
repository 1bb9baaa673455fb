"""Train, load and fold adapters with PaddleNLP; see job.py."""

from __future__ import annotations

import json
import sys

import numpy as np
import paddle
from job import TOKENS, work, write_weights
from paddlenlp.peft import LoRAConfig, LoRAModel
from paddlenlp.transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM
from paddlenlp.utils.log import logger

CLASSES = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}


def move(model, amount: float) -> None:
    """Change all that is trained, and mixers, which aren't marked as trained."""
    for name, parameter in model.named_parameters():
        if not parameter.stop_gradient or "lora_" in name:
            parameter.set_value(parameter + amount * paddle.randn(parameter.shape))


def adapt(folder: str, config: dict[str, object], adapters: dict[str, dict[str, object]], fuse: bool = False) -> None:
    """Into `folder`: base, tuned (all of it), and each adapter, with the model that it makes in NAME-folded."""
    paddle.seed(0)
    configured, model_class = CLASSES[config["model_type"]]
    settings = configured(**config)
    settings.fuse_attention_qkv = settings.fuse_attention_ffn = fuse  # the constructor drops them
    model = model_class(settings)
    move(model, 0.4)
    weights = model.state_dict()
    model.save_pretrained(f"{folder}/base", safe_serialization=True)
    for name, lora in adapters.items():
        own = model_class(settings)
        own.set_state_dict(weights)
        adapted = LoRAModel(own, LoRAConfig(**lora))
        adapted.mark_only_lora_as_trainable()
        move(adapted, 0.05)
        adapted.save_pretrained(f"{folder}/{name}")
        fold_into(adapted, f"{folder}/{name}-folded")
    move(model, 0.05)
    model.save_pretrained(f"{folder}/tuned", safe_serialization=True)


def open_model(folder: str, fuse: bool = False, **options: object):
    with open(f"{folder}/config.json") as file:
        configured, model_class = CLASSES[json.load(file)["model_type"]]
    settings = configured.from_pretrained(folder)
    settings.fuse_attention_qkv = settings.fuse_attention_ffn = fuse
    return model_class.from_pretrained(folder, config=settings, **options)


def fold(base: str, adapter: str, folder: str, options: dict[str, object]) -> None:
    fold_into(LoRAModel.from_pretrained(open_model(base, **options), adapter), folder)


def fold_into(adapted, folder: str) -> None:
    adapted.merge()
    write_weights(folder, adapted.model.state_dict())


def load(folder: str, fuse: bool, options: dict[str, object]) -> tuple[np.ndarray, str]:
    """Logits."""
    model = open_model(folder, fuse, **options)
    model.eval()
    with paddle.no_grad():
        result = model(paddle.to_tensor(TOKENS))
    return (result[0] if isinstance(result, tuple) else result).numpy(), ""


if __name__ == "__main__":
    logger.set_level("ERROR")
    work(sys.modules[__name__])
