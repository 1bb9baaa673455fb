"""Compute the hidden states of prompts in a language model: the program that run/gates.py starts.

It reads JSON from standard input: model, the path of a checkpoint; groups, lists of prompts as tokens; average, whether of a
prompt all tokens count, or only the last one; out, the file to write: float64 [groups, layers, hidden], for each group the
mean over its prompts of the inputs of every layer. What goes wrong is the last line of standard error.

Every prompt is computed alone, so there is no padding that could count.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import numpy as np

from ..errors import MergeError
from .contract import EvaluationError, scratch_folder
from .evaluators.libraries.models import ModelSettings, StoredModel, chosen, opened


def states_of(model: Any, groups: list[list[list[int]]], average: bool) -> np.ndarray:
    """Return what the module's docstring says of `out`. model: as search.evaluators.libraries.models.LanguageModel."""
    found = []
    for prompts in groups:
        total: Any = 0.0
        for tokens in prompts:
            states = np.asarray(model.hidden_states(tokens), np.float64)  # [layers, length, hidden]
            total = total + (states.mean(axis=1) if average else states[:, -1])
        found.append(total / len(prompts))
    return np.stack(found)


def main() -> None:
    """Run the program."""
    asked = json.load(sys.stdin)
    settings = ModelSettings()
    with scratch_folder() as near:
        folder = os.path.expanduser(asked["model"])
        if not os.path.isdir(folder):  # a name on a hub, a file, or a model with adapters
            from ..recipe.config import MergeConfig
            from ..run.merge import merge
            from .candidates import alone

            recipe, folder = alone(asked["model"]), os.path.join(near, "base")
            merge(MergeConfig(recipe_yaml=recipe, output_path=folder, output_layout="hf"), progress=False)
        model = opened(StoredModel(folder), chosen(settings, "gate_mode"), settings)
        np.save(asked["out"], states_of(model, asked["groups"], asked["average"]))


if __name__ == "__main__":
    try:
        main()
    except (EvaluationError, MergeError) as error:
        sys.exit("; ".join(error.problems) if isinstance(error, MergeError) else str(error))
