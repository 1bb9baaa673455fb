"""Test that an adapter that was trained on quantised weights is folded into weights that are quantised and dequantised."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from paddle_merge import CheckpointError, MergeConfig, merge
from tests.conversion.lora.test_lora import paddle
from tests.support.checkpoints import read
from tests.support.quantised import write_typed

BF16 = ml_dtypes.bfloat16
LLAMA = {
    "model_type": "llama",
    "hidden_size": 8,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 12,
}
QUERY, KEY = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj"


def run(out: Path, model: str, **options: Any) -> dict[str, np.ndarray]:
    merge(MergeConfig(model_path_list=[model, model], output_path=str(out), **options))
    return read(out)


def adapter(folder: Path, said: dict[str, Any] | None) -> Path:
    """An adapter of PaddleFormers that adds 2 * (A B) to the transpose of QUERY: 2 everywhere."""
    factors = {f"{QUERY}.lora_A": np.ones((8, 1)), f"{QUERY}.lora_B": np.ones((1, 8))}
    path = Path(paddle(folder, factors, r=1, lora_alpha=2, target_modules=[".*q_proj.*"]))
    if said is not None:
        (path / "config.json").write_text(json.dumps({"quantization_config": said}))
    return path


def base(folder: Path, query: np.ndarray) -> Path:
    rng = np.random.default_rng(1)
    tensors = {f"{QUERY}.weight": query.astype(BF16), f"{KEY}.weight": rng.normal(size=(4, 8)).astype(BF16)}
    return write_typed(folder, tensors, LLAMA)


def there_and_back(w: np.ndarray, levels: int) -> np.ndarray:
    """Quantise rows as Paddle's GPU kernels do their columns, and dequantise them, in float32 with bfloat16 scales."""
    w = w.astype(np.float32)
    largest = np.abs(w).max(1, keepdims=True)
    scale = (largest / np.float32(levels)).astype(BF16).astype(np.float32)
    share = w / largest * np.float32(levels)
    codes = np.sign(share) * np.floor(np.abs(share.astype(np.float64)) + 0.5)
    return (codes.astype(np.float32) * scale).astype(BF16).astype(np.float64)


@pytest.mark.parametrize(("algorithm", "levels"), [("weight_only_int8", 127), ("weight_only_int4", 7)])
@pytest.mark.parametrize("layout", ["hf", "paddleformers"])
def test_the_listed_weights_are_quantised(tmp_path: Path, algorithm: str, levels: int, layout: str) -> None:
    """A pattern for all attention, and one to ignore; in either layout outputs have a scale each."""
    query = np.random.default_rng(0).normal(size=(8, 8))
    model = base(tmp_path / "base", query)
    said = {
        "weight_quantize_algo": {algorithm: [".*self_attn.*"]},
        "ignore_modules": [".*k_proj"],
        "quantization_linear_list": [QUERY, KEY],
    }
    path = adapter(tmp_path / "adapter", said)
    options = {"output_layout": layout, "merge_with_qdq_base_model": True, "out_dtype": "float32"}
    found = run(tmp_path / "out", f"{model}+{path}", **options)
    expected = (there_and_back(query.astype(BF16), levels) + 2).astype(np.float32)
    assert (found[f"{QUERY}.weight"] == (expected if layout == "hf" else expected.T)).all()
    key = read(model)[f"{KEY}.weight"]
    assert (found[f"{KEY}.weight"] == (key if layout == "hf" else key.T)).all()


def test_a_hand_sized_row(tmp_path: Path) -> None:
    """Levels of 1 / 7 of the largest, 7: 3.5 goes away from zero to 4, -3.5 to -4; and a row of zeros stays."""
    query = np.zeros((8, 8))
    query[0] = [7, 3.5, -3.5, 0.25, 0.75, -7, 6.25, -1.5]
    model = base(tmp_path / "base", query)
    said = {"weight_quantize_algo": "weight_only_int4", "quantization_linear_list": [QUERY]}
    path = adapter(tmp_path / "adapter", said)
    found = run(tmp_path / "out", f"{model}+{path}", merge_with_qdq_base_model=True)[f"{QUERY}.weight"] - 2
    assert found[0].tolist() == [7, 4, -4, 0, 1, -7, 6, -2]
    assert not found[1:].any()


def test_without_the_flag_there_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = base(tmp_path / "base", np.ones((8, 8)) / 2)
    said = {"weight_quantize_algo": "weight_only_int8", "quantization_linear_list": [QUERY, KEY]}
    path = adapter(tmp_path / "adapter", said)
    with caplog.at_level(logging.WARNING):
        found = run(tmp_path / "out", f"{model}+{path}")
    assert (found[f"{QUERY}.weight"] == read(model)[f"{QUERY}.weight"] + 2).all()
    assert (
        f"{path}: was trained on a base with 2 quantised weights (weight_only_int8); --merge_with_qdq_base_model"
        in caplog.text
    )


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"weight_quantize_algo": "nf4", "quantization_linear_list": [QUERY]}, "quantised by nf4, which can't be repeated"),
        (
            {"weight_quantize_algo": "weight_only_int8", "group_size": 64, "quantization_linear_list": [QUERY]},
            "quantised in groups of 64",
        ),
        (
            {"weight_quantize_algo": "weight_only_int8", "quantization_linear_list": ["model.layers.7.mlp.up_proj"]},
            "says that tensor 'model.layers.7.mlp.up_proj.weight' were quantised in training",
        ),
    ],
)
def test_what_cannot_be_repeated(tmp_path: Path, said: dict[str, Any], words: str) -> None:
    model, path = base(tmp_path / "base", np.ones((8, 8))), adapter(tmp_path / "adapter", said)
    with pytest.raises(CheckpointError, match=words):
        run(tmp_path / "out", f"{model}+{path}", merge_with_qdq_base_model=True)


def test_an_adapter_of_a_plain_base(tmp_path: Path) -> None:
    model, path = base(tmp_path / "base", np.ones((8, 8))), adapter(tmp_path / "adapter", None)
    found = run(tmp_path / "out", f"{model}+{path}", merge_with_qdq_base_model=True)
    assert (found[f"{QUERY}.weight"] == 3).all()
