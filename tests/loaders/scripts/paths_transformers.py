"""Write random models of many families with transformers, and compute paths of their layers explicitly; see job.py."""

from __future__ import annotations

import copy
import sys

import numpy as np
import torch
from job import work
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging
from with_transformers import answer, load  # noqa: F401 - load is one of the jobs


def save(folder: str, config: dict[str, object], seed: int) -> None:
    """Write a model whose weights are all random and large, so that norms' epsilon has next to no effect."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.float32)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.normal_(1.0 if "norm" in name or "ln_" in name else 0.0, 1.0 if "embed" in name or "wte" in name else 0.3)
    model.save_pretrained(folder)


def reference(folders: list[str], path: list[list[float]]) -> np.ndarray:
    """Return the logits of the first model with other layers. path: (model, layer, factor on the stream that enters it)."""
    models = [AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval() for folder in folders]
    made = []
    for number, layer, scale in path:
        module = copy.deepcopy(stack(models[int(number)])[1][int(layer)])
        module.register_forward_pre_hook(scaled(scale), with_kwargs=True)
        made.append(module)
    owner, _, name = stack(models[0])
    setattr(owner, name, torch.nn.ModuleList(made))
    config = models[0].config
    config.num_hidden_layers, config.use_cache = len(made), False
    if getattr(config, "layer_types", None):
        config.layer_types = [models[int(number)].config.layer_types[int(layer)] for number, layer, _ in path]
    return answer(models[0])


def scaled(scale: float):
    def hook(module, args, kwargs):
        if "hidden_states" in kwargs:
            return args, {**kwargs, "hidden_states": kwargs["hidden_states"] * scale}
        return (args[0] * scale, *args[1:]), kwargs

    return hook


def stack(model) -> tuple[object, torch.nn.ModuleList, str]:
    """Return the module that has the layers, the layers, and their name in it."""
    for owner in model.modules():
        for name in ("layers", "h"):
            if isinstance(found := getattr(owner, name, None), torch.nn.ModuleList):
                return owner, found, name
    raise ValueError("no layers")


if __name__ == "__main__":
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    work(sys.modules[__name__])
