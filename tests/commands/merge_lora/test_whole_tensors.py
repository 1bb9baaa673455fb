"""Test what merge-lora makes of tensors that adapters hold whole: modules_to_save, biases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_merge import CheckpointError
from tests.conversion.test_layout import llama, stored
from tests.support.adapters import (
    EMBEDDING,
    Q,
    changes,
    lora,
    merged,
    settings_of,
)
from tests.support.checkpoints import dtypes, read

HEAD = "lm_head.weight"
NEEDS_BASE = "so what training changed has to be known: give --base_model_path"


def with_head(folder: Path, seed: int, head: np.ndarray, **config: Any) -> str:
    return lora(folder, {Q: (16, 16, 2)}, seed, extra={HEAD: head}, modules_to_save=["lm_head"], **config)


def test_whole_tensors_by_weights_that_add_up_to_1(tmp_path: Path) -> None:
    """0.25 * 4 + 0.75 * 8 = 7, whatever the base has."""
    a, b = (with_head(tmp_path / str(seed), seed, np.full((40, 16), 4.0 * seed)) for seed in (1, 2))
    out, report = merged(tmp_path, a, b, weight_list=[0.25, 0.75])
    assert (changes(out)[HEAD] == 7.0).all()
    assert settings_of(out)["modules_to_save"] == ["lm_head"]
    assert report["whole"] == [{"name": HEAD, "shape": [40, 16], "adapters": [0, 1], "copied": False}]


def test_a_whole_tensor_of_one_adapter_of_weight_1_stays(tmp_path: Path) -> None:
    head = np.random.default_rng(0).normal(size=(40, 16)).astype(np.float32)
    a, b = with_head(tmp_path / "a", 1, head), lora(tmp_path / "b", {Q: (16, 16, 2)}, 2)
    np.testing.assert_array_equal(changes(merged(tmp_path, a, b)[0])[HEAD], head)


def test_whole_tensors_that_equal_the_base_are_copied(tmp_path: Path) -> None:
    base = llama(0)
    folder = stored(tmp_path / "base", base, "hf", dtype="float32")
    a, b = (with_head(tmp_path / str(seed), seed, base[HEAD]) for seed in (1, 2))
    out, report = merged(tmp_path, a, b, base_model_path=folder)
    np.testing.assert_array_equal(changes(out)[HEAD], base[HEAD].astype(np.float32))
    assert report["whole"][0]["copied"]


def test_whole_tensors_that_are_the_same_add_up_as_others_do(tmp_path: Path) -> None:
    """base + 2 (4 - base) + (4 - base): with the base, and never without it."""
    base = llama(0)
    folder = stored(tmp_path / "base", base, "hf", dtype="float32")
    a, b = (with_head(tmp_path / str(seed), seed, np.full((40, 16), 4.0)) for seed in (1, 2))
    out, report = merged(tmp_path, a, b, weight_list=[2.0, 1.0], base_model_path=folder)
    np.testing.assert_allclose(changes(out)[HEAD], 12.0 - 2.0 * base[HEAD], rtol=1e-6)
    assert not report["whole"][0]["copied"]
    with pytest.raises(CheckpointError, match=NEEDS_BASE):
        merged(tmp_path / "other", a, b, weight_list=[2.0, 1.0])


@pytest.mark.parametrize("first", ["float32", "bfloat16"])
def test_whole_tensors_of_several_dtypes_are_float32_in_any_order(tmp_path: Path, first: str) -> None:
    """0.5 * 1.00390625 (which bfloat16 rounds to 1) + 0.5 * 1."""
    names = ["float32", "bfloat16"] if first == "float32" else ["bfloat16", "float32"]
    values = {"float32": 1.00390625, "bfloat16": 1.0}
    adapters = [with_head(tmp_path / name, 1, np.full((40, 16), values[name]), dtype=name) for name in names]
    out, _ = merged(tmp_path, *adapters, weight_list=[0.5, 0.5])
    assert dtypes(out, "adapter_model")[f"base_model.model.{HEAD}"] == "float32"
    assert (changes(out)[HEAD] == 1.001953125).all()


@pytest.mark.parametrize("layout", ["hf", "paddlenlp"])
def test_whole_tensors_with_the_base(tmp_path: Path, layout: str) -> None:
    """base + 2 * (4 - base) - 1 * (8 - base) = 0; and with a method, base + the mean of the two changes and of none."""
    base = llama(0)
    folder = stored(tmp_path / "base", base, layout, dtype="float32")
    a, b = (with_head(tmp_path / str(seed), seed, np.full((40, 16), 4.0 * seed)) for seed in (1, 2))
    out, _ = merged(tmp_path, a, b, weight_list=[2.0, -1.0], base_model_path=folder)
    np.testing.assert_allclose(changes(out)[HEAD], 0.0 * base[HEAD], atol=1e-6)
    c = lora(tmp_path / "c", {Q: (16, 16, 2)}, 3)
    out, _ = merged(tmp_path / "method", a, b, c, merge_method="linear", base_model_path=folder)
    np.testing.assert_allclose(changes(out)[HEAD], (4.0 + 8.0 + base[HEAD]) / 3, rtol=1e-6)


def test_biases_that_were_trained(tmp_path: Path) -> None:
    """PEFT's bias: lora_only stores the bias of an adapted layer."""
    adapters = [
        lora(
            tmp_path / str(seed),
            {Q: (6, 4, 2)},
            seed,
            extra={f"{Q}.base_layer.bias": np.full(6, float(seed))},
            bias="lora_only",
        )
        for seed in (1, 2)
    ]
    out, _ = merged(tmp_path, *adapters, weight_list=[0.5, 0.5])
    assert (read(out, "adapter_model")[f"base_model.model.{Q}.base_layer.bias"] == 1.5).all()
    assert settings_of(out)["bias"] == "all"


def test_the_base_layer_that_peft_saves_beside_an_embedding_is_copied(tmp_path: Path) -> None:
    table = np.random.default_rng(0).normal(size=(7, 5))
    frozen = {f"{EMBEDDING}.base_layer.weight": table}
    a = lora(tmp_path / "a", {EMBEDDING: (5, 7, 2)}, 1, extra=frozen)
    b = lora(tmp_path / "b", {Q: (6, 4, 2)}, 2)
    out, _ = merged(tmp_path, a, b, weight_list=[0.5, 0.5])
    name = f"base_model.model.{EMBEDDING}.base_layer.weight"
    np.testing.assert_array_equal(read(out, "adapter_model")[name], read(Path(a), "adapter_model")[name])
    other = lora(tmp_path / "c", {EMBEDDING: (5, 7, 2)}, 1, extra={f"{EMBEDDING}.base_layer.weight": table + 1})
    with pytest.raises(CheckpointError, match="is the base model's in each adapter, and differs"):
        merged(tmp_path / "other", a, other)


@pytest.mark.parametrize(
    "fields", [{}, {"weight_list": [0.5, 0.6]}, {"merge_method": "ties", "weight_list": [0.5, 0.5]}], ids=str
)
def test_whole_tensors_need_the_base_where_it_counts(tmp_path: Path, fields: dict[str, Any]) -> None:
    a, b = (with_head(tmp_path / str(seed), seed, np.full((40, 16), 4.0 * seed)) for seed in (1, 2))
    with pytest.raises(CheckpointError, match=NEEDS_BASE):
        merged(tmp_path, a, b, **fields)
