"""A small Llama (RoPE, RMSNorm, SwiGLU) as a function of its weights, which have the names that transformers gives them.

Checkpoints are folders with config.json and model.safetensors, as any library loads them. Linear layers are [out, in].
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F  # noqa: N812
from safetensors.numpy import load_file, save_file

Weights = Mapping[str, Any]


def new(seed: int, words: int, width: int, depth: int, inner: int) -> dict[str, Any]:
    """Return the weights of an untrained model.

    words: size of the vocabulary. width: of the residual stream. depth: number of layers. inner: width inside the MLPs.
    """
    generator = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (words, width), "lm_head.weight": (words, width)}
    for layer in range(depth):
        at = f"model.layers.{layer}"
        shapes |= {f"{at}.self_attn.{word}_proj.weight": (width, width) for word in "qkvo"}
        shapes |= {f"{at}.mlp.{word}_proj.weight": (inner, width) for word in ("gate", "up")}
        shapes |= {f"{at}.mlp.down_proj.weight": (width, inner)}
        shapes |= {f"{at}.{word}_layernorm.weight": (width,) for word in ("input", "post_attention")}
    shapes |= {"model.norm.weight": (width,)}
    made = {}
    for name, shape in shapes.items():
        value = np.ones(shape) if len(shape) == 1 else generator.standard_normal(shape) / np.sqrt(width)
        made[name] = paddle.to_tensor(value.astype(np.float32), stop_gradient=False)
    return made


def logits(weights: Weights, tokens: Any, heads: int, cache: list[tuple[Any, Any]] | None = None) -> Any:
    """Return logits [n, length, words] of tokens [n, length]: Llama's forward pass, for as many layers as there are.

    cache: the keys and values of the tokens before these, for each layer, to which those of these tokens are added; [] if
    there are none before.
    """
    count, length = tokens.shape
    depth = 1 + max(int(name.split(".")[2]) for name in weights if ".layers." in name)
    before = cache[0][0].shape[2] if cache else 0
    width = weights["model.norm.weight"].shape[0]
    size = width // heads
    angles = paddle.outer(
        paddle.arange(before, before + length, dtype="float32"),
        10000.0 ** (-paddle.arange(0, size, 2, dtype="float32") / size),
    )
    cos, sin = (paddle.concat([half, half], 1) for half in (paddle.cos(angles), paddle.sin(angles)))  # [length, size]
    future = paddle.triu(paddle.full([length, before + length], -1e9), 1 + before)

    def norm(name: str, x: Any) -> Any:
        return x * paddle.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6) * weights[name]

    def linear(name: str, x: Any) -> Any:
        return x @ weights[name].t()

    def by_head(name: str, x: Any) -> Any:
        return linear(name, x).reshape([count, length, heads, size]).transpose([0, 2, 1, 3])

    def rotated(x: Any) -> Any:
        first, second = x[..., : size // 2], x[..., size // 2 :]
        return x * cos + paddle.concat([-second, first], -1) * sin

    x = F.embedding(tokens, weights["model.embed_tokens.weight"])
    for layer in range(depth):
        at = f"model.layers.{layer}"
        read = norm(f"{at}.input_layernorm.weight", x)
        query, key = (rotated(by_head(f"{at}.self_attn.{word}_proj.weight", read)) for word in "qk")
        value = by_head(f"{at}.self_attn.v_proj.weight", read)
        if cache is not None:
            if before:
                old_key, old_value = cache[layer]
                key, value = paddle.concat([old_key, key], 2), paddle.concat([old_value, value], 2)
                cache[layer] = key, value
            else:
                cache.append((key, value))
        attention = F.softmax(query @ key.transpose([0, 1, 3, 2]) / size**0.5 + future, -1)
        mixed = (attention @ value).transpose([0, 2, 1, 3]).reshape([count, length, width])
        x = x + linear(f"{at}.self_attn.o_proj.weight", mixed)
        read = norm(f"{at}.post_attention_layernorm.weight", x)
        inner = F.silu(linear(f"{at}.mlp.gate_proj.weight", read)) * linear(f"{at}.mlp.up_proj.weight", read)
        x = x + linear(f"{at}.mlp.down_proj.weight", inner)
    return linear("lm_head.weight", norm("model.norm.weight", x))


def save(weights: Weights, folder: Path, heads: int) -> None:
    """Write a checkpoint."""
    folder.mkdir(parents=True)
    words, width = weights["lm_head.weight"].shape
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": weights["model.layers.0.mlp.up_proj.weight"].shape[0],
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "num_hidden_layers": sum(name.endswith("up_proj.weight") for name in weights),
        "vocab_size": words,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
        "dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    tensors = {name: np.ascontiguousarray(value.numpy()) for name, value in weights.items()}
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})


def load(folder: Path) -> dict[str, Any]:
    """Return the weights of a checkpoint, to be trained further or run."""
    held = load_file(str(folder / "model.safetensors"))
    return {name: paddle.to_tensor(value, stop_gradient=False) for name, value in held.items()}
