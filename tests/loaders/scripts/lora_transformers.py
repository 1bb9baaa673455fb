"""Train, load and fold adapters with PEFT; see job.py."""

from __future__ import annotations

import copy
import os
import sys
import warnings

import numpy as np
import torch
from job import TOKENS, work
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, LoraConfig, PeftModel, PeftType, get_peft_model
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging


def move(model, amount: float) -> None:
    """Change all that is trained."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += amount * torch.randn_like(parameter)


def adapt(folder: str, config: dict[str, object], adapters: dict[str, dict[str, object]]) -> None:
    """Into `folder`: base, tuned (all of it), and each adapter, with the model that it makes in NAME-folded, and the logits
    of the model with the adapter in NAME-logits.npy.

    An adapter's settings are LoraConfig's, and: peft_type, for another class; rows, that the embedding gets before training.
    """
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    move(model, 0.4)
    model.save_pretrained(f"{folder}/base")
    for name, settings in adapters.items():
        settings, own = dict(settings), copy.deepcopy(model)
        if rows := settings.pop("rows", None):
            own.resize_token_embeddings(rows)
        kind = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(settings.pop("peft_type", "LORA"))]
        adapted = get_peft_model(own, kind(task_type="CAUSAL_LM", **settings))
        move(adapted, 0.05)
        adapted.save_pretrained(f"{folder}/{name}", save_embedding_layers=True if rows else "auto")
        np.save(f"{folder}/{name}-logits.npy", answer(adapted))
        fold_into(adapted, f"{folder}/{name}-folded")
    move(model, 0.05)
    model.save_pretrained(f"{folder}/tuned")


def convolve(folder: str, adapters: dict[str, dict[str, object]]) -> None:
    """Into `folder`: base, each adapter, and what it makes of the base."""
    torch.manual_seed(0)
    layers = {
        "one": torch.nn.Conv1d(4, 6, 3),
        "two": torch.nn.Conv2d(4, 6, (2, 3)),
        "three": torch.nn.Conv3d(4, 6, (1, 2, 3)),
    }
    model = torch.nn.ModuleDict({**layers, "narrow": torch.nn.Conv2d(4, 6, 1), "pointwise": torch.nn.Conv1d(4, 6, 1)})

    def write(state: dict[str, torch.Tensor], name: str) -> None:
        os.makedirs(f"{folder}/{name}")
        save_file(state, f"{folder}/{name}/model.safetensors", metadata={"format": "pt"})

    write(model.state_dict(), "base")
    for name, settings in adapters.items():
        adapted = get_peft_model(copy.deepcopy(model), LoraConfig(**settings))
        move(adapted, 0.3)
        adapted.save_pretrained(f"{folder}/{name}")
        write(adapted.merge_and_unload().state_dict(), f"{name}-folded")


def combine(base: str, adapters: dict[str, str], cases: dict[str, dict[str, object]], folder: str) -> None:
    """Write FOLDER/CASE, what add_weighted_adapter makes with these arguments. adapters: name -> path."""
    (first, path), *others = adapters.items()
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), path, adapter_name=first)
    for name, other in others:
        adapted.load_adapter(other, name)
    for name, arguments in cases.items():
        adapted.add_weighted_adapter(adapter_name=name, **arguments)
        adapted.save_pretrained(folder, selected_adapters=[name])


def fold(base: str, adapter: str, folder: str, options: dict[str, object]) -> None:
    fold_into(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, **options), adapter), folder)


def fold_into(adapted, folder: str) -> None:
    """Save the model with the adapter folded in, after checking that it computes the same."""
    before, targets = answer(adapted), adapted.peft_config["default"].target_modules or ()
    folded = adapted.merge_and_unload()
    if not (
        folded.config.tie_word_embeddings and "embed_tokens" in targets and adapted.peft_type == PeftType.LORA
    ):  # trained without the head, folded with it
        np.testing.assert_allclose(answer(folded), before, rtol=0, atol=1e-3)
    folded.save_pretrained(folder)


def answer(model) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(torch.from_numpy(TOKENS)).logits.numpy()


if __name__ == "__main__":
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("error", message="Found missing adapter keys")
    work(sys.modules[__name__])
