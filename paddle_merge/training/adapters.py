"""Take the LoRA adapter out of a flex checkpoint, where PaddleFormers stores it together with the base."""

from __future__ import annotations

import json
import os
import shutil

from ..recipe.config import MergeConfig
from ..run.merge import merge
from . import flex
from .checkpoints import form_of


def passthrough(path: str) -> str:
    """Return the recipe that writes a model as it is."""
    return f"merge_method: passthrough\nmodels: [{{model: {json.dumps(path)}}}]\n"


def with_base(base: str, folder: str) -> str:
    """Return what a merge takes for a base and the adapter in a folder of ours, which becomes an adapter's if it isn't."""
    if form_of(folder) == "flex":
        own = f"{folder}.merged"
        recipe = passthrough(folder)
        merge(
            MergeConfig(recipe_yaml=recipe, output_layout="paddleformers", save_format="pdparams", output_path=own),
            progress=False,
        )
        flex.adapter_from(own, os.path.join(folder, "lora_model_state.pdparams"))
        shutil.rmtree(own)
        shutil.rmtree(os.path.join(folder, "model_state"))
    return f"{base}+{folder}"
