"""Write tiny models with tied weights, once as transformers saves them and once with every copy, as torch.save does of a
state dict; or load merged ones. Runs in the environment of transformers.

    tied_copies.py save FOLDER    writes FOLDER/NAME-few and FOLDER/NAME-all for each model, and NAME-expected.npz: what the
                                  average of the two computes
    tied_copies.py load FOLDER    loads FOLDER/NAME-out for each; writes NAME-out.npz: what it computes
"""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
import torch
import transformers

SMALL = {"vocab_size": 40, "d_model": 16, "pad_token_id": 0}
T5 = {**SMALL, "d_kv": 4, "d_ff": 24, "num_layers": 1, "num_heads": 4, "decoder_start_token_id": 0}
HEADS = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
BART = {
    **SMALL,
    **HEADS,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "max_position_embeddings": 20,
    "decoder_start_token_id": 2,
}
BERT = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 24}
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "t5": ("T5ForConditionalGeneration", "T5Config", T5),
    "flan-t5": (
        "T5ForConditionalGeneration",
        "T5Config",
        {**T5, "tie_word_embeddings": False, "feed_forward_proj": "gated-gelu"},
    ),
    "bart": ("BartForConditionalGeneration", "BartConfig", BART),
    "bert": ("BertForMaskedLM", "BertConfig", {**BERT, "max_position_embeddings": 20}),
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        {"vocab_size": 40, "n_embd": 16, "n_layer": 1, "n_head": 4, "n_positions": 20},
    ),
}
TOKENS = torch.tensor([[5, 9, 2, 33, 17, 4, 8, 1]])


def computed(model: Any) -> np.ndarray:
    inputs = {"decoder_input_ids": TOKENS.flip(1)} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model.eval()(input_ids=TOKENS, **inputs).logits.numpy()


def random_model(name: str, seed: int) -> Any:
    kind, config, settings = MODELS[name]
    torch.manual_seed(seed)
    model = getattr(transformers, kind)(getattr(transformers, config)(**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def save(folder: str) -> None:
    for name in MODELS:
        one, other = random_model(name, 1), random_model(name, 2)
        one.save_pretrained(f"{folder}/{name}-few")
        other.config.architectures = [MODELS[name][0]]
        other.config.save_pretrained(f"{folder}/{name}-all")
        torch.save(other.state_dict(), f"{folder}/{name}-all/pytorch_model.bin")
        with torch.no_grad():
            for mine, its in zip(one.parameters(), other.parameters(), strict=True):
                mine.copy_((mine.double() + its.double()) / 2)
        np.savez(f"{folder}/{name}-expected.npz", computed(one))


def load(folder: str) -> None:
    for name, (kind, _, _) in MODELS.items():
        if os.path.isdir(f"{folder}/{name}-out"):
            model = getattr(transformers, kind).from_pretrained(f"{folder}/{name}-out")
            np.savez(f"{folder}/{name}-out.npz", computed(model))


if __name__ == "__main__":
    {"save": save, "load": load}[sys.argv[1]](sys.argv[2])
