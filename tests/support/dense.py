"""Tiny dense language models, as transformers has them, of which mixtures of experts are made; and a tokenizer of words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.checkpoints import write

HIDDEN, INTER, HEADS, KV, VOCAB, LAYERS = 16, 24, 4, 2, 40, 2
WIDTH = HIDDEN // HEADS
CLASSES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "ernie4_5": "Ernie4_5"}
WORDS = ["<unk>", "<s>", "</s>", *(f"w{number}" for number in range(3, VOCAB))]  # w7 is token 7


def state(kind: str, seed: int, inter: int = INTER, vocab: int = VOCAB) -> dict[str, np.ndarray]:
    """Return random weights by name, in Hugging Face's layout."""
    random = np.random.default_rng([seed, *kind.encode()])
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, HIDDEN)}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        for name, heads in {"q": HEADS, "k": KV, "v": KV}.items():
            shapes[f"{at}self_attn.{name}_proj.weight"] = (heads * WIDTH, HIDDEN)
            if kind == "qwen2":
                shapes[f"{at}self_attn.{name}_proj.bias"] = (heads * WIDTH,)
            if kind == "qwen3" and name != "v":
                shapes[f"{at}self_attn.{name}_norm.weight"] = (WIDTH,)
        shapes[f"{at}self_attn.o_proj.weight"] = (HIDDEN, HEADS * WIDTH)
        shapes |= {f"{at}mlp.{name}_proj.weight": (inter, HIDDEN) for name in ("gate", "up")}
        shapes[f"{at}mlp.down_proj.weight"] = (HIDDEN, inter)
        shapes |= {f"{at}{name}.weight": (HIDDEN,) for name in ("input_layernorm", "post_attention_layernorm")}
    shapes |= {"model.norm.weight": (HIDDEN,), "lm_head.weight": (vocab, HIDDEN)}
    return {name: random.normal(float("norm" in name), 0.3, shape).astype(np.float32) for name, shape in shapes.items()}


def config(kind: str, inter: int = INTER, vocab: int = VOCAB, **more: Any) -> dict[str, Any]:
    """Return config.json of such a model. more: what it says otherwise; None leaves an entry out."""
    said = {
        "architectures": [f"{CLASSES[kind]}ForCausalLM"],
        "model_type": kind,
        "hidden_size": HIDDEN,
        "intermediate_size": inter,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV,
        "head_dim": WIDTH,
        "vocab_size": vocab,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-3,
        "rope_theta": 500.0,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **more,
    }
    return {name: value for name, value in said.items() if value is not None}


def write_dense(folder: Path, kind: str = "llama", seed: int = 0, dtype: str = "float32", **sizes: Any) -> Path:
    """Write such a model, with a tokenizer. sizes: as of state and config."""
    shapes = {name: sizes[name] for name in ("inter", "vocab") if name in sizes}
    write(folder, state(kind, seed, **shapes), dtype, format="pt", config=config(kind, **sizes))
    write_tokenizer(folder, WORDS)
    return folder


def write_tokenizer(folder: Path, words: list[str], bos: str | Mapping[str, str] | None = "<s>") -> None:
    """Write a tokenizer of words between spaces; the first is what it takes unknown ones for."""
    import tokenizers

    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=words[0])
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens([word for word in words if word.startswith("<")])
    made.save(str(folder / "tokenizer.json"))
    said = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos, "eos_token": "</s>", "unk_token": words[0]}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
