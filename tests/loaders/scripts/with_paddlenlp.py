"""Save and load models with PaddleNLP; see job.py."""

from __future__ import annotations

import sys

import numpy as np
import paddle
from job import TOKENS, paddle_state, read_state, work
from paddlenlp.transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
)
from paddlenlp.utils.log import logger

CLASSES = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}


def build(state: str, config: dict[str, object], dtype: str):
    """The library's own model with the weights of a file."""
    configured, model_class = CLASSES[config["model_type"]]
    paddle.set_default_dtype(dtype)
    model = model_class(configured(**config, dtype=dtype))
    paddle.set_default_dtype("float32")
    weights = paddle_state(read_state(state), config["model_type"] + ".")
    if config["tie_word_embeddings"]:
        weights["lm_head.weight"] = weights[config["model_type"] + ".embed_tokens.weight"]
    else:
        weights["lm_head.weight"] = np.ascontiguousarray(weights["lm_head.weight"].T)
    tensors = {name: paddle.to_tensor(value).astype(dtype) for name, value in weights.items()}
    missing, unexpected = model.set_state_dict(tensors)
    assert not missing, missing
    assert not unexpected, unexpected
    return model


def save(folder: str, state: str, config: dict[str, object], dtype: str, kind: str) -> None:
    model = build(state, config, dtype)
    shard = {"max_shard_size": "8KB"} if kind == "paddlenlp_shards" else {}
    model.generation_config.num_beams = 3
    model.save_pretrained(folder, safe_serialization=kind != "paddlenlp_pdparams", **shard)


def answer(model) -> np.ndarray:
    model.eval()
    with paddle.no_grad():
        result = model(paddle.to_tensor(TOKENS))
    return (result[0] if isinstance(result, tuple) else result).numpy()


def reference(state: str, config: dict[str, object]) -> np.ndarray:
    return answer(build(state, config, "float32"))


def load(folder: str, model_type: str, options: dict[str, object]) -> tuple[np.ndarray, str]:
    """Logits in float32, and what it is if nothing but `options` is said."""
    _, model_class = CLASSES[model_type]
    model = model_class.from_pretrained(folder, dtype="float32", **options)  # the CPU multiplies no bfloat16
    own = model_class.from_pretrained(folder, **options)
    return answer(model), f"{own.lm_head.weight.dtype}, num_beams {own.generation_config.num_beams}".removeprefix("paddle.")


def save_tokenizer(folder: str, vocab: str, merges: str, added: list[str] | None = None) -> None:
    tokenizer = Qwen2Tokenizer(vocab_file=vocab, merges_file=merges)
    tokenizer.add_special_tokens({"additional_special_tokens": added or []})
    tokenizer.save_pretrained(folder)


def tokenize(folder: str, **options: object):
    return AutoTokenizer.from_pretrained(folder, **options)


if __name__ == "__main__":
    logger.set_level("ERROR")
    work(sys.modules[__name__])
