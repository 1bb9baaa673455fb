"""Small models, evaluators and search files for the tests of the search."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tests.support.checkpoints import write

LAYERS = 3
SHAPES = {"self_attn.q_proj": (4, 4), "mlp.up_proj": (6, 4), "mlp.down_proj": (4, 6)}

# An evaluator: how far a model is from base + 0.3 (math - base) + 0.9 (code - base) in layer 0, and so on; with a value per
# sample, each of which is another tensor. It can be told to fail in several ways.
SCORE = """
import os
import time

import numpy as np
from safetensors.numpy import load_file

WANTED = {0: (0.3, 0.9), 1: (0.8, 0.2), 2: (1.0, 0.1)}
HERE = os.path.dirname(os.path.abspath(__file__))
M = {name: load_file(os.path.join(HERE, name, "model.safetensors")) for name in ("base", "math", "code")}
NAMES = sorted(M["base"])


def score(candidate, split, seed, samples):
    held = candidate.state_dict()
    losses = []
    for place in range(len(NAMES)) if samples is None else samples:
        name = NAMES[place]
        a, b = WANTED[int(name.split(".")[2])]
        want = M["base"][name] + a * (M["math"][name] - M["base"][name]) + b * (M["code"][name] - M["base"][name])
        losses.append(float(((held[name] - want) ** 2).mean()))
    return {"loss": sum(losses) / len(losses), "size": float(np.abs(held[NAMES[0]]).sum())}


score.count = lambda split: len(NAMES)


def slow(candidate, split, seed, samples):
    time.sleep(0.02)
    return score(candidate, split, seed, samples)
"""
RECIPE = """
merge_method: task_arithmetic
base_model: {folder}/base
models:
  - model: {folder}/math
    parameters: {{weight: {{search: [0, 1.5], by: layer}}}}
  - model: {folder}/code
    parameters: {{weight: {{search: [0, 1.5], by: layer}}}}
"""


def state(seed: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {
        f"model.layers.{layer}.{name}.weight": generator.standard_normal(shape)
        for layer in range(LAYERS)
        for name, shape in SHAPES.items()
    }


def workshop(
    folder: Path, search: str, recipe: str = RECIPE, dtype: str = "float32", more: Mapping[str, str] | None = None
) -> Path:
    """Write base, math and code, score.py and search.yaml into a folder; return the path of search.yaml.

    search: the lines of the section `search`, without indentation. more: further files, by name.
    """
    for number, name in enumerate(("base", "math", "code")):
        write(folder / name, state(number), dtype, format="pt")
    for name, text in {"score.py": SCORE, **(more or {})}.items():
        (folder / name).write_text(text)
    section = "".join(f"  {line}\n" for line in search.strip().splitlines())
    path = folder / "search.yaml"
    path.write_text(recipe.format(folder=folder) + "search:\n" + section)
    return path
