"""Small models for tests of recipes, and what recipes make of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_merge import ConfigError, MergeConfig, merge
from paddle_merge.recipe.yaml_read import parse
from tests.support.checkpoints import read, write


def model(folder: Path, seed: int, layers: int = 4, dtype: str = "float32") -> str:
    random = np.random.default_rng(seed)
    tensors = {"model.embed_tokens.weight": random.standard_normal((7, 3))}
    for number in range(layers):
        tensors[f"model.layers.{number}.self_attn.q_proj.weight"] = random.standard_normal((3, 3))
        tensors[f"model.layers.{number}.mlp.up_proj.weight"] = random.standard_normal((5, 3))
    tensors |= {"model.norm.weight": random.standard_normal(3), "lm_head.weight": random.standard_normal((7, 3))}
    return str(write(folder, tensors, dtype, config={"num_hidden_layers": layers, "hidden_size": 3}))


def made(text: str, out: str = "out", **fields: Any) -> dict[str, np.ndarray]:
    merge(MergeConfig(recipe_yaml=text + "\n", output_path=out, **fields), progress=False)
    return read(Path(out))


def models(*names: str) -> list[dict[str, np.ndarray]]:
    return [read(Path(name)) for name in names]


def q(number: int) -> str:
    return f"model.layers.{number}.self_attn.q_proj.weight"


def up(number: int) -> str:
    return f"model.layers.{number}.mlp.up_proj.weight"


def mistakes(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text, "r.yaml")
    return caught.value.problems
