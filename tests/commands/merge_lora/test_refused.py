"""Test what merge-lora refuses, with all problems at once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_merge import CheckpointError, ConfigError
from tests.conversion.lora.test_lora import peft
from tests.conversion.test_layout import State, llama, stored
from tests.support.adapters import (
    EMBEDDING,
    Q,
    V,
    assert_same,
    changes,
    lora,
    merged,
    of_paddle,
    total,
)


def test_all_problems_at_once(tmp_path: Path) -> None:
    fields = {"weight_list": [1.0], "energy": 2.0, "merge_method": "ties", "combination_type": "cat", "rank": 0}
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").touch()
    with pytest.raises(ConfigError) as error:
        merged(tmp_path, str(tmp_path / "none"), peft(tmp_path / "bad", {A: np.ones((2, 4))}), **fields)
    text = str(error.value)
    for sentence in (
        "--weight_list has 1 numbers for 2 adapters",
        "--energy 2 must be above 0",
        "two ways to merge",
        "--rank 0 must be at least 1",
        "none: no such folder",
        "has no lora_B",
        "is not empty",
    ):
        assert sentence in text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"combination_type": "ties"}, "needs --density"),
        ({"reserve_p": 0.5}, "--density has no effect with --combination_type cat"),
        ({"combination_type": "ties", "reserve_p": 1.5}, "must be above 0 and at most 1"),
        ({"combination_type": "linear", "rank": 2}, "use svd"),
        ({"combination_type": "dare_ties", "reserve_p": 0.5, "energy": 0.5}, "use dare_ties_svd"),
        ({"majority_sign_method": "frequency"}, "no effect with --combination_type cat"),
        ({"scale": 2.0, "normalize": False}, "--normalize, --scale: for --merge_method only"),
        ({"merge_method": "nearswap"}, "have none in common"),
        ({"merge_method": "breadcrumbs", "method_parameters": ["gama=1"]}, "gama"),
        ({"merge_method": "lines"}, "needs --method_parameters alpha="),
        ({"merge_method": "ties", "majority_sign_method": "frequency"}, "--ties_elect_type"),
        ({"layout": "hf"}, "so it needs --base_model_path"),
        ({"combination_type": "tie"}, "must be one of"),
        ({"weight_list": [1e-40, 1.0]}, "too small for float32"),
    ],
)
def test_flags_that_contradict(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    adapters = [lora(tmp_path / str(seed), {Q: (6, 4, 2)}, seed) for seed in (1, 2)]
    with pytest.raises(ConfigError, match=re.escape(message)):
        merged(tmp_path, *adapters, **fields)
    assert not (tmp_path / "out").exists()


A, B = f"{Q}.lora_A.weight", f"{Q}.lora_B.weight"
PAIR = {A: np.ones((2, 4)), B: np.ones((6, 2))}
REFUSED: list[tuple[State, dict[str, Any], str]] = [
    ({**PAIR, f"{Q}.lora_magnitude_vector": np.ones(6)}, {"use_dora": True}, "has DoRA's magnitudes"),
    ({**PAIR, f"{EMBEDDING}.token_adapter.trainable_tokens_delta": np.ones((1, 4))},
     {"trainable_token_indices": [3]}, "replaces rows of single tokens"),
    (PAIR, {"target_parameters": ["mlp.experts.down_proj"]}, "adapts stacks of experts"),
    (PAIR, {"init_lora_weights": "pissa"}, "can't be merged: it was initialised with init_lora_weights 'pissa'"),
    (PAIR, {"peft_type": "VERA"}, "can't be merged: its config has peft_type 'VERA'"),
    ({A: np.ones((2, 4))}, {}, "has no lora_B"),
    ({A: np.ones((2, 4)), B: np.ones((6, 3))}, {}, "different ranks, 2 and 3"),
    ({A: np.ones((3, 4)), B: np.ones((6, 3))}, {}, "has rank 3, but the adapter's config says 2"),
    ({A: np.ones((0, 4)), B: np.ones((6, 0))}, {"r": 0}, f"can't be merged: 'base_model.model.{A}' is empty"),
    ({A: np.ones((2, 5)), B: np.ones((6, 2))}, {}, "were they trained on one model?"),
    ({A: np.array([[np.nan] * 4] * 2), B: np.ones((6, 2))}, {}, "holds NaN or Inf"),
    ({}, {}, "holds no tensors"),
]  # fmt: skip


@pytest.mark.parametrize(("tensors", "config", "message"), REFUSED, ids=[message for *_, message in REFUSED])
def test_adapters_that_are_refused(tmp_path: Path, tensors: State, config: dict[str, Any], message: str) -> None:
    bad = peft(tmp_path / "bad", tensors, "float32", **{"r": 2, **config})
    with pytest.raises(CheckpointError, match=re.escape(message)):
        merged(tmp_path, lora(tmp_path / "good", {Q: (6, 4, 2)}, 1), bad)
    assert not (tmp_path / "out").exists()


def test_fused_and_separate_layers_need_the_base(tmp_path: Path) -> None:
    a, b = lora(tmp_path / "a", {"m.qkv_proj": (6, 4, 2)}, 1), lora(tmp_path / "b", {"m.k_proj": (2, 4, 2)}, 2)
    with pytest.raises(CheckpointError, match=r"'m\.k_proj', a part of it; give --base_model_path"):
        merged(tmp_path, a, b)


def test_other_formats_need_the_base(tmp_path: Path) -> None:
    a, (b, _) = lora(tmp_path / "a", {Q: (16, 16, 2)}, 1), of_paddle(tmp_path / "b", "llama", 2, 1)
    with pytest.raises(CheckpointError, match=r"are of different libraries .*give --format"):
        merged(tmp_path, a, b)
    with pytest.raises(CheckpointError, match="names layers otherwise; give --base_model_path"):
        merged(tmp_path, a, b, format="peft")
    with pytest.raises(CheckpointError, match="names layers otherwise; give --base_model_path"):
        merged(tmp_path, a, format="paddlenlp")


def test_layers_that_the_base_lacks(tmp_path: Path) -> None:
    folder = stored(tmp_path / "base", llama(0), "hf", dtype="float32")
    a = lora(tmp_path / "a", {"model.layers.7.self_attn.q_proj": (16, 16, 2)}, 1)
    b = lora(tmp_path / "b", {Q: (12, 16, 2)}, 1)
    with pytest.raises(CheckpointError) as error:
        merged(tmp_path, a, b, base_model_path=folder)
    assert "doesn't have; was it trained on another model?" in str(error.value)
    assert "is for a weight of 16 inputs and 12 outputs" in str(error.value)


def test_ranks_that_differ_factor_by_factor(tmp_path: Path) -> None:
    a, b = lora(tmp_path / "a", {Q: (6, 4, 2)}, 1), lora(tmp_path / "b", {Q: (6, 4, 3)}, 2, r=3)
    with pytest.raises(CheckpointError, match=r"has ranks 2, 3, .* use ties_svd, or cat"):
        merged(tmp_path, a, b, combination_type="ties", reserve_p=0.5)


def biased(folder: Path, name: str, seed: int) -> str:
    return lora(folder, {name: (16, 16, 2)}, seed, extra={f"{name}.lora_B.bias": np.ones(16)}, lora_bias=True)


def test_biases_of_lora_that_peft_could_not_load_or_fold(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """PEFT's lora_bias is for all layers: it raises for embeddings, and folds none into a layer without a bias."""
    folder = stored(tmp_path / "base", llama(0), "hf", dtype="float32")
    a, table = biased(tmp_path / "a", Q, 1), lora(tmp_path / "b", {EMBEDDING: (16, 40, 2)}, 2)
    with pytest.raises(CheckpointError, match="is an embedding, for which PEFT has no lora_bias"):
        merged(tmp_path, a, table)
    other = lora(tmp_path / "c", {V: (8, 16, 2)}, 3)
    with pytest.raises(CheckpointError, match=rf"layer '{V}' has no bias in the base model, and layer '{Q}' has one"):
        merged(tmp_path, a, other, base_model_path=folder)
    with caplog.at_level("WARNING", "paddle_merge"):
        merged(tmp_path, a, biased(tmp_path / "d", Q, 4))
        assert not caplog.text
        merged(tmp_path, a, other, overwrite=True)
    assert f"such as '{V}' (1 in all), get one of zeros" in caplog.text


def test_an_embedding_for_paddle(tmp_path: Path) -> None:
    folder = stored(tmp_path / "base", llama(0), "hf", dtype="float32")
    a = lora(tmp_path / "a", {EMBEDDING: (16, 40, 2)}, 1)
    with pytest.raises(CheckpointError, match="is an embedding, which only PEFT has with low-rank matrices"):
        merged(tmp_path, a, base_model_path=folder, format="paddlenlp")


def test_overflow_is_told(tmp_path: Path) -> None:
    a = peft(tmp_path / "a", {A: np.ones((2, 4)), B: np.full((6, 2), 6e4)}, "float16", r=2, lora_alpha=2)
    b = peft(tmp_path / "b", {A: np.full((2, 4), 6e4), B: np.full((6, 2), 6e4)}, "float16", r=2, lora_alpha=2)
    with pytest.raises(CheckpointError, match="overflow float16; give another --out_dtype"):
        merged(tmp_path, a, a, b, weight_list=[1.0, 1.0, 2.0])
    out, _ = merged(tmp_path, a, a, b, weight_list=[1.0, 1.0, 2.0], out_dtype="float32")
    assert_same(changes(out), total([a, a, b], [1.0, 1.0, 2.0]))
