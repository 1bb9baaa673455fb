"""Test that merges in memory, one after another, are the merges of files, to the last bit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from paddle_merge import MergeConfig, merge
from paddle_merge.recipe.recipe import Recipe
from paddle_merge.recipe.yaml_read import parse
from paddle_merge.search.merger import Merger
from tests.support.checkpoints import read, write
from tests.support.mixtures import model
from tests.support.searches import state, workshop
from tests.support.sweeps import few

RECIPES = {
    "dare_ties": """
merge_method: dare_ties
base_model: {folder}/base
models:
  - {{model: {folder}/math, parameters: {{weight: [0.5, 1.0, 0.2], density: 0.5}}}}
  - {{model: {folder}/code, parameters: {{weight: 0.7, density: 0.3}}}}
seed: 5
""",
    "della": """
merge_method: della
base_model: {folder}/base
models: [{{model: {folder}/math}}, {{model: {folder}/code}}]
parameters: {{weight: 0.6, density: 0.6, epsilon: 0.2}}
""",
    "slerp": """
merge_method: slerp
base_model: {folder}/math
models: [{{model: {folder}/math}}, {{model: {folder}/code}}]
parameters: {{t: 0.3}}
""",
    "slices": """
merge_method: passthrough
slices:
  - sources: [{{model: {folder}/math, layer_range: [0, 2]}}]
  - sources: [{{model: {folder}/code, layer_range: [1, 3], parameters: {{scale: 0.5}}}}]
""",
    "stages": """
name: both
merge_method: linear
models: [{{model: {folder}/math, parameters: {{weight: 0.4}}}}, {{model: {folder}/code, parameters: {{weight: 0.6}}}}]
---
merge_method: ties
base_model: {folder}/base
models: [{{model: both}}, {{model: {folder}/code}}]
parameters: {{weight: 1.0, density: 0.5}}
""",
    "adapter": """
merge_method: linear
models: [{{model: {folder}/math+{folder}/lora}}, {{model: {folder}/code}}]
parameters: {{weight: 1.0}}
""",
    "copies": """
merge_method: dare_linear
base_model: {folder}/base
models: [{{model: {folder}/math}}, {{model: {folder}/code}}]
parameters: {{weight: 1.0, density: 0.5}}
""",
}


def made(folder: Path, name: str, dtype: str) -> Recipe:
    workshop(folder, "", dtype=dtype)
    if name == "copies":  # tensors that are equal in every input get the same masks
        for number, model in enumerate(("base", "math", "code")):
            held = state(number)
            held["copy.weight"] = held["model.layers.0.mlp.up_proj.weight"]
            write(folder / model, held, dtype, format="pt")
    generator = np.random.default_rng(9)
    module = "base_model.model.model.layers.1.mlp.up_proj"
    factors = {
        f"{module}.lora_A.weight": generator.standard_normal((2, 4)),
        f"{module}.lora_B.weight": generator.standard_normal((6, 2)),
    }
    write(folder / "lora", factors, prefix="adapter_model", format="pt")
    (folder / "lora/adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))
    return parse(RECIPES[name].format(folder=folder), "x.yaml").recipe


@pytest.mark.parametrize("memory", [0, 1 << 30])
@pytest.mark.parametrize("dtype", ["float32", *few(["bfloat16", "float16", "float64"], 1)])
@pytest.mark.parametrize("name", RECIPES)
def test_as_from_files(tmp_path: Path, name: str, dtype: str, memory: int) -> None:
    """The second merge too, whose inputs are in memory if there is room."""
    recipe = made(tmp_path, name, dtype)
    (tmp_path / "recipe.yaml").write_text(RECIPES[name].format(folder=tmp_path))
    merge(MergeConfig(recipe_yaml=str(tmp_path / "recipe.yaml"), output_path=str(tmp_path / "out")), progress=False)
    expected = read(tmp_path / "out")
    merger = Merger(memory=memory)
    for _ in range(2):
        got = merger.merge(recipe)
        assert got.keys() == expected.keys()
        for tensor, values in expected.items():
            np.testing.assert_array_equal(got[tensor].values.astype(values.dtype), values)
    merger.close()


def test_candidates_that_merge_experts_in_groups(tmp_path: Path) -> None:
    """What groups of experts are made of is merged anew for each candidate."""
    folders = [model(tmp_path / str(seed), seed, layers=1) for seed in range(2)]
    merger = Merger(memory=1 << 30)
    for weight in (0.2, 0.9):
        document = {
            "merge_method": "linear",
            "models": [{"model": one, "parameters": {"weight": w}} for one, w in zip(folders, (weight, 1.0), strict=True)],
            "keep_experts": [{"0": 0.7, "3": 0.3}, 1],
        }
        out = tmp_path / f"out {weight}"
        merge(MergeConfig(recipe_yaml=json.dumps(document) + "\n", output_path=str(out)), progress=False)
        got = merger.merge(parse(json.dumps(document), "x.yaml").recipe)
        for name, values in read(out).items():
            np.testing.assert_array_equal(got[name].values, values, err_msg=name)
    merger.close()


def test_one_merger_for_several_recipes(tmp_path: Path) -> None:
    """Recipes that differ in parameters, in method and in inputs, in turns."""
    recipes = [made(tmp_path, name, "float32") for name in ("dare_ties", "slerp", "stages", "slices")]
    alone = []
    for recipe in recipes:
        merger = Merger(memory=1 << 30)
        alone.append(merger.merge(recipe))
        merger.close()
    merger = Merger(memory=1 << 30)
    for number in (0, 1, 2, 3, 2, 0, 1):
        got = merger.merge(recipes[number])
        assert all(np.array_equal(got[name].raw, tensor.raw) for name, tensor in alone[number].items())
    merger.close()


def test_the_memory_that_is_allowed(tmp_path: Path) -> None:
    """Inputs of 3 x 64 x 3 numbers of 4 bytes: half of them fit."""
    recipe = made(tmp_path, "dare_ties", "float32")
    whole = sum(array.nbytes for array in map(np.float32, state(0).values())) * 3
    merger = Merger(memory=whole // 2)
    merger.merge(recipe)
    held = sum(raw.nbytes for raw, _ in merger._held.values())
    assert whole // 4 < held <= whole // 2
    merger.close()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_output_that_somebody_holds_is_not_overwritten(tmp_path: Path, dtype: str) -> None:
    """Whether as a whole, as one tensor, or as a view; of all others the memory is used again."""
    recipes = [
        parse(RECIPES["dare_ties"].replace("weight: 0.7", f"weight: {weight}").format(folder=tmp_path), "x.yaml").recipe
        for weight in (0.7, 0.1, 0.4)
    ]
    made(tmp_path, "dare_ties", dtype)
    merger = Merger(memory=1 << 30)
    name = "model.layers.1.mlp.up_proj.weight"
    whole = merger.merge(recipes[0])
    before = {name: tensor.raw.copy() for name, tensor in whole.items()}
    merger.merge(recipes[1])
    assert all(np.array_equal(whole[name].raw, raw) for name, raw in before.items())
    view = merger.merge(recipes[0])[name].values.reshape(-1)[2:]
    expected = view.copy()
    places = {name: raw.ctypes.data for name, raw in merger._made.items()}
    merger.merge(recipes[2])
    np.testing.assert_array_equal(view, expected)
    moved = {other for other, raw in merger._made.items() if raw.ctypes.data != places[other]}
    assert moved == ({name} if dtype == "float32" else set())  # of bfloat16, values are in new memory
    again = merger.merge(recipes[0])
    assert all(np.array_equal(again[name].raw, raw) for name, raw in before.items())
    merger.close()


def test_copies_are_in_new_memory(tmp_path: Path) -> None:
    for dtype in ("float32", "bfloat16"):
        recipe = made(tmp_path / dtype, "slices", dtype)
        merger = Merger(memory=1 << 30)
        tensors = merger.merge(recipe)  # some are an input's, as they are
        expected = {name: tensor.values.copy() for name, tensor in tensors.items()}
        for tensor in tensors.values():
            tensor.copy()[...] = 7.0
        assert all(np.array_equal(tensor.values, expected[name]) for name, tensor in tensors.items())
        merger.close()
