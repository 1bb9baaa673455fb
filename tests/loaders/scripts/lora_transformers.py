"""Train, load and fold adapters with PEFT; see job.py."""

from __future__ import annotations

import copy
import sys
import warnings

import numpy as np
import torch
from job import TOKENS, work
from peft import LoraConfig, PeftModel, get_peft_model
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
    of the model with the adapter in NAME-logits.npy."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    move(model, 0.4)
    model.save_pretrained(f"{folder}/base")
    for name, settings in adapters.items():
        adapted = get_peft_model(copy.deepcopy(model), LoraConfig(task_type="CAUSAL_LM", **settings))
        move(adapted, 0.05)
        adapted.save_pretrained(f"{folder}/{name}")
        np.save(f"{folder}/{name}-logits.npy", answer(adapted))
        fold_into(adapted, f"{folder}/{name}-folded")
    move(model, 0.05)
    model.save_pretrained(f"{folder}/tuned")


def fold(base: str, adapter: str, folder: str, options: dict[str, object]) -> None:
    fold_into(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, **options), adapter), folder)


def fold_into(adapted, folder: str) -> None:
    """Save the model with the adapter folded in, after checking that it computes the same."""
    before, targets = answer(adapted), adapted.peft_config["default"].target_modules
    folded = adapted.merge_and_unload()
    if not (folded.config.tie_word_embeddings and "embed_tokens" in targets):  # trained without the head, folded with it
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
