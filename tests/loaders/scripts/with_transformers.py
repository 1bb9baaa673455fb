"""Save and load models with transformers; see job.py."""

from __future__ import annotations

import json
import os
import sys

import numpy as np
import torch
from job import TOKENS, read_state, work
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Qwen2Tokenizer
from transformers.utils import logging


def build(state: str, config: dict[str, object], dtype: str):
    """The library's own model with the weights of a file."""
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=getattr(torch, dtype))
    weights = {name: torch.from_numpy(value).to(getattr(torch, dtype)) for name, value in read_state(state).items()}
    if config["tie_word_embeddings"]:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights, strict=True)
    return model


def save(folder: str, state: str, config: dict[str, object], dtype: str, kind: str) -> None:
    model = build(state, config, dtype)
    shard = {"max_shard_size": "8KB"} if kind == "transformers_shards" else {}
    model.generation_config.num_beams = 3
    model.save_pretrained(folder, **shard)
    if kind == "transformers_bin":  # what transformers before 5 wrote
        os.unlink(f"{folder}/model.safetensors")
        torch.save(model.state_dict(), f"{folder}/pytorch_model.bin")


def answer(model) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(torch.from_numpy(TOKENS)).logits.numpy()


def reference(state: str, config: dict[str, object]) -> np.ndarray:
    return answer(build(state, config, "float32"))


def load(folder: str, model_type: str, options: dict[str, object]) -> tuple[np.ndarray, str]:
    """Logits in float32, and what it is if nothing but `options` is said."""
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True, **options)
    own = AutoModelForCausalLM.from_pretrained(folder, **options)
    wrong = {name: sorted(map(str, value)) for name, value in info.items() if value}
    return answer(model), str(wrong or f"{own.dtype}, num_beams {own.generation_config.num_beams}").removeprefix("torch.")


def save_tokenizer(folder: str, vocab: str, merges: str, added: list[str] | None = None) -> None:
    with open(vocab) as file:
        words = json.load(file)
    with open(merges) as file:
        pairs = [tuple(line.split()) for line in file.read().splitlines()[1:]]
    tokenizer = Qwen2Tokenizer(vocab=words, merges=pairs)
    tokenizer.add_special_tokens({"additional_special_tokens": added or []})
    tokenizer.save_pretrained(folder)


def tokenize(folder: str, **options: object):
    return AutoTokenizer.from_pretrained(folder, **options)


if __name__ == "__main__":
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    work(sys.modules[__name__])
