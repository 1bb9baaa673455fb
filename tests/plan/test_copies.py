"""Test that tensors stored under several names are merged as one, whatever a method draws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from paddle_merge import MergeConfig, merge
from tests.support.checkpoints import read, write
from tests.support.sweeps import few

COPIES = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")


def models(folder: Path, names: tuple[str, ...], apart: str = "") -> list[str]:
    """Three models, the last the base, whose tensors of these names are equal, but for one of the second model's."""
    paths = []
    for seed in range(3):
        generator = np.random.default_rng(seed)
        tensors = {"encoder.block.0.layer.0.SelfAttention.q.weight": generator.standard_normal((8, 8))}
        embedding = generator.standard_normal((300, 8))
        tensors |= {name: embedding.copy() for name in names}
        if apart and seed == 1:
            tensors[apart][-1, -1] += 1
        paths.append(str(write(folder / f"m{seed}", tensors, config={"model_type": "t5", "tie_word_embeddings": True})))
    return paths


def merged(folder: Path, paths: list[str], method: str) -> dict[str, np.ndarray]:
    config = MergeConfig(merge_method=method, model_path_list=paths[:2], base_model_path=paths[2])
    config.output_path = str(folder / "out")
    merge(config, progress=False)
    return read(folder / "out")


@pytest.mark.parametrize("method", few(["dare_ties", "della", "dare_linear", "della_linear"], 2))
def test_copies_stay_copies(tmp_path: Path, method: str) -> None:
    result = merged(tmp_path, models(tmp_path, COPIES), method)
    assert (result[COPIES[0]] != 0).any()
    for name in COPIES[1:]:
        np.testing.assert_array_equal(result[name], result[COPIES[0]])


def test_what_differs_in_one_model_is_no_copy(tmp_path: Path) -> None:
    """In its last element, which the first look doesn't see. Other masks leave other elements."""
    names = ("one.weight", "two.weight")
    result = merged(tmp_path, models(tmp_path, names, apart="two.weight"), "dare_linear")
    assert (result["one.weight"] != result["two.weight"]).mean() > 0.1


def test_copies_stay_copies_through_a_stage(tmp_path: Path) -> None:
    first, second, base = models(tmp_path, COPIES)
    recipe = f"""
name: first
merge_method: dare_ties
base_model: {base}
parameters: {{weight: 1, density: 0.5}}
models: [{{model: {first}}}, {{model: {second}}}]
---
merge_method: della
base_model: {base}
models: [{{model: first, parameters: {{weight: 1, density: 0.5, epsilon: 0.1}}}}]
"""
    merge(MergeConfig(recipe_yaml=recipe, output_path=str(tmp_path / "out")), progress=False)
    result = read(tmp_path / "out")
    for name in COPIES[1:]:
        np.testing.assert_array_equal(result[name], result[COPIES[0]])
