"""Test merge-lora on adapters of Paddle, and from one library's format to another's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.conversion.lora.test_lora import paddle
from tests.conversion.test_layout import llama, stored
from tests.support.adapters import (
    assert_same,
    changes,
    changes_of_paddle,
    lora,
    merged,
    of_paddle,
)
from tests.support.checkpoints import read


@pytest.mark.parametrize(("prefix", "format"), [("llama", "paddlenlp"), ("model", "paddleformers")])
def test_adapters_of_paddle(tmp_path: Path, prefix: str, format: str) -> None:
    (a, one), (b, two) = of_paddle(tmp_path / "a", prefix, 2, 1), of_paddle(tmp_path / "b", prefix, 3, 2, rslora=True)
    for number, fields in enumerate(({}, {"rank": 9})):
        out, report = merged(tmp_path / str(number), a, b, weight_list=[0.5, -1.0], **fields)
        assert report["format"] == format
        assert_same(changes_of_paddle(out), {name: 0.5 * one[name] - two[name] for name in one})
        config = json.loads((out / "lora_config.json").read_text())
        assert (config["r"], config["target_modules"], config["trainable_modules"]) == (5, [".*q_proj"], None)
        assert (out / "peft_model.safetensors.index.json").exists()


def test_mixers_are_multiplied_in(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    tensors = {
        f"llama.q.lora_{key}": generator.normal(size=shape) for key, shape in (("A", (4, 2)), ("AB", (2, 2)), ("B", (2, 6)))
    }
    mixed = paddle(tmp_path / "b", tensors, lora_use_mixer=True, r=2, lora_alpha=2)
    out, _ = merged(tmp_path, mixed, mixed, weight_list=[1.0, 1.0])
    expected = 2 * (tensors["llama.q.lora_A"] @ tensors["llama.q.lora_AB"] @ tensors["llama.q.lora_B"]).T
    np.testing.assert_allclose(changes_of_paddle(out)["model.q.weight"], expected, rtol=1e-6)


@pytest.mark.parametrize("format", ["peft", "paddlenlp", "paddleformers"])
def test_adapters_of_different_libraries_with_the_base(tmp_path: Path, format: str) -> None:
    folder = stored(tmp_path / "base", llama(0), "hf", dtype="float32")
    a, one = of_paddle(tmp_path / "a", "llama", 2, 1)
    c, two = of_paddle(tmp_path / "c", "model", 1, 3)
    b = lora(tmp_path / "b", {f"model.layers.{layer}.self_attn.q_proj": (16, 16, 2) for layer in (0, 1)}, 2)
    out, _ = merged(tmp_path, a, b, c, base_model_path=folder, format=format, weight_list=[1.0, 0.5, 2.0])
    third = changes(b)
    expected = {name: one[name] + 0.5 * third[name] + 2 * two[name] for name in one}
    assert_same(changes(out) if format == "peft" else changes_of_paddle(out), expected)
    tensors = read(out, "adapter_model" if format == "peft" else "peft_model")
    prefix = {"peft": "base_model.model.model.", "paddlenlp": "llama.", "paddleformers": "model."}[format]
    assert all(name.startswith(f"{prefix}layers.") for name in tensors)


def test_a_fused_adapter_is_taken_apart_as_the_base_is(tmp_path: Path) -> None:
    """PaddleNLP's qkv_proj has, for each of 2 key heads, 2 queries, a key and a value of width 4."""
    folder = stored(tmp_path / "base", llama(0), "hf", dtype="float32")
    name, generator = "llama.layers.0.self_attn.qkv_proj", np.random.default_rng(0)
    left, right = generator.normal(size=(16, 2)), generator.normal(size=(2, 32))
    fused = paddle(tmp_path / "a", {f"{name}.lora_A": left, f"{name}.lora_B": right}, r=2, lora_alpha=2)
    out, _ = merged(tmp_path, fused, base_model_path=folder, format="peft")
    groups = (left @ right).T.reshape(2, 4, 4, 16)
    got = {name.split(".")[-2][0]: value for name, value in changes(out).items()}
    np.testing.assert_allclose(got["q"], groups[:, :2].reshape(16, 16), atol=1e-6)
    np.testing.assert_allclose(got["k"], groups[:, 2].reshape(8, 16), atol=1e-6)
    np.testing.assert_allclose(got["v"], groups[:, 3].reshape(8, 16), atol=1e-6)
