"""Save and load models with PaddleFormers; see job.py."""

from __future__ import annotations

import os
import sys

import numpy as np
import paddle
from job import TOKENS, paddle_state, read_state, work
from paddleformers.transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from paddleformers.utils.log import logger

KINDS = {
    "paddleformers_hf": {},
    "paddleformers_unified": {"save_checkpoint_format": "unified_checkpoint"},
    "paddleformers_paddle": {
        "save_checkpoint_format": "unified_checkpoint",
        "save_to_hf": False,
        "safe_serialization": True,
    },
    "paddleformers_pdparams": {"save_checkpoint_format": "unified_checkpoint", "save_to_hf": False},
}


def build(state: str, config: dict[str, object], dtype: str):
    """The library's own model with the weights of a file."""
    paddle.set_default_dtype(dtype)
    settings = LlamaConfig(**config, dtype=dtype)
    settings.fuse_rms_norm = False  # the fused kernel is a GPU's
    model = LlamaForCausalLM(settings)
    paddle.set_default_dtype("float32")
    weights = paddle_state(read_state(state), "model.")
    if config["tie_word_embeddings"]:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    tensors = {name: paddle.to_tensor(value).astype(dtype) for name, value in weights.items()}
    missing, unexpected = model.set_state_dict(tensors)
    assert not missing, missing
    assert not unexpected, unexpected
    return model


def save(folder: str, state: str, config: dict[str, object], dtype: str, kind: str) -> None:
    model = build(state, config, dtype)
    if kind == "paddleformers_checkpoint":  # as its Trainer saves one, with the config that it lacks
        paddle.distributed.save_state_dict(model.sharded_state_dict(), os.path.join(folder, "model_state"))
        model.config.architectures = ["LlamaForCausalLM"]
        model.config.save_pretrained(folder)
    else:
        model.save_pretrained(folder, **KINDS[kind])


def answer(model) -> np.ndarray:
    model.eval()
    with paddle.no_grad():
        result = model(paddle.to_tensor(TOKENS))
    return (result[0] if isinstance(result, tuple) else result).numpy()


def reference(state: str, config: dict[str, object]) -> np.ndarray:
    return answer(build(state, config, "float32"))


def load(folder: str, model_type: str, options: dict[str, object]) -> tuple[np.ndarray, str]:
    """Logits in float32, and what it is if nothing but `options` is said."""
    config = LlamaConfig.from_pretrained(folder)
    config.fuse_rms_norm = False
    model = LlamaForCausalLM.from_pretrained(folder, config=config, dtype="float32", **options)  # no bfloat16 on the CPU
    config = LlamaConfig.from_pretrained(folder)
    own = LlamaForCausalLM.from_pretrained(folder, config=config, **options).lm_head.weight.dtype
    return answer(model), str(own).removeprefix("paddle.")


def tokenize(folder: str, **options: object):
    return AutoTokenizer.from_pretrained(folder, **options)


if __name__ == "__main__":
    logger.set_level("ERROR")
    work(sys.modules[__name__])
