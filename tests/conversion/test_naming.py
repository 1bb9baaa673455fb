"""Test that models merge whose tensors differ in name only as libraries' versions and wrappers name them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from paddle_merge import MergeConfig, merge
from paddle_merge.conversion.naming import in_memory, plain
from tests.support.checkpoints import read, write


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("model.layers.0.mlp.up_proj.weight", "layers.0.mlp.up_proj.weight"),
        ("model.language_model.layers.0.mlp.up_proj.weight", "layers.0.mlp.up_proj.weight"),
        ("language_model.model.layers.0.mlp.up_proj.weight", "layers.0.mlp.up_proj.weight"),
        ("module.model.layers.0.mlp.up_proj.weight", "layers.0.mlp.up_proj.weight"),
        ("_orig_mod.model.layers.0._fsdp_wrapped_module.mlp.up_proj.weight", "layers.0.mlp.up_proj.weight"),
        ("model.visual.blocks.0.attn.proj.weight", "visual.blocks.0.attn.proj.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("lm_head.weight", "lm_head.weight"),
        ("bert.embeddings.LayerNorm.gamma", "embeddings.LayerNorm.weight"),
        ("embeddings.LayerNorm.bias", "embeddings.LayerNorm.bias"),
        ("transformer.h.0.ln_1.weight", "h.0.ln_1.weight"),
        ("llama.layers.0.mlp.up_proj.weight", "llama.layers.0.mlp.up_proj.weight"),
        ("model.scale", "model.scale"),
        ("w", "w"),
        ("gpt_neox.layers.0.mlp.up.weight", "layers.0.mlp.up.weight"),
        ("embed_out.weight", "lm_head.weight"),
        ("backbone.layers.0.norm.weight", "layers.0.norm.weight"),
        ("model.layers.0.block_sparse_moe.gate.weight", "layers.0.mlp.gate.weight"),
        ("model.layers.0.mlp.router.weight", "layers.0.mlp.gate.weight"),
        ("model.layers.0.block_sparse_moe.router.layer.weight", "layers.0.mlp.gate.weight"),
        ("model.layers.0.block_sparse_moe.input_linear.weight", "layers.0.mlp.experts.gate_up_proj"),
        ("model.layers.1.mlp.gate.moe_statics.e_score_correction_bias", "layers.1.mlp.moe_statics.e_score_correction_bias"),
        ("model.layers.1.mlp.e_score_correction_bias", "layers.1.mlp.e_score_correction_bias"),
    ],
)
def test_plain_names(name: str, short: str) -> None:
    assert plain(name) == short


@pytest.mark.parametrize(
    ("family", "module", "live"),
    [
        ("qwen2_vl", "model.layers.0.self_attn.q_proj", "model.language_model.layers.0.self_attn.q_proj"),
        ("gemma3", "language_model.model.layers.0.mlp.up_proj", "model.language_model.layers.0.mlp.up_proj"),
        ("gemma3", "vision_tower.vision_model.encoder.layers.0.q", "model.vision_tower.vision_model.encoder.layers.0.q"),
        ("qwen2_vl", "model.norm", "model.language_model.norm"),
        ("llava", "language_model.lm_head", "lm_head"),
        ("qwen2", "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.q_proj"),
    ],
)
def test_names_in_memory(family: str, module: str, live: str) -> None:
    assert in_memory(module, family) == live


NAMES = {
    "hub": ["model.layers.0.mlp.up_proj.weight", "visual.blocks.0.attn.proj.weight", "lm_head.weight"],
    "4.52": ["model.language_model.layers.0.mlp.up_proj.weight", "model.visual.blocks.0.attn.proj.weight", "lm_head.weight"],
    "llava": ["language_model.model.layers.0.mlp.up_proj.weight", "visual.blocks.0.attn.proj.weight", "lm_head.weight"],
    "ddp": ["module.model.layers.0.mlp.up_proj.weight", "module.visual.blocks.0.attn.proj.weight", "module.lm_head.weight"],
}


@pytest.mark.parametrize("other", NAMES)
@pytest.mark.parametrize("first", NAMES)
def test_any_two_generations_merge(tmp_path: Path, first: str, other: str) -> None:
    """The output has the first model's names, but for a wrapper of training. Sums of whole numbers are exact."""
    folders = [
        write(tmp_path / f"m{k}", {name: np.full((3, 2), 4.0 * n + 2 * k) for n, name in enumerate(NAMES[one])}, format="pt")
        for k, one in enumerate((first, other))
    ]
    merge(MergeConfig(model_path_list=[str(one) for one in folders], output_path=str(tmp_path / "out")), progress=False)
    result = read(tmp_path / "out")
    like = other if first == "ddp" else first
    assert sorted(result) == sorted(NAMES[like])
    for n, name in enumerate(NAMES[like]):
        assert (result[name] == 4 * n + 1).all()


# In files, and in the memory of transformers 5, by its conversion_mapping.py.
IN_FILES = {
    "embed_out.weight": "lm_head.weight",
    "model.layers.0.block_sparse_moe.input_linear.weight": "model.layers.0.block_sparse_moe.experts.gate_up_proj",
    "model.layers.1.mlp.moe_statics.e_score_correction_bias": "model.layers.1.mlp.gate.moe_statics.e_score_correction_bias",
    "model.layers.1.mlp.e_score_correction_bias": "model.layers.1.mlp.gate.e_score_correction_bias",
    "backbone.layers.0.norm.weight": "model.layers.0.norm.weight",
}


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("name", IN_FILES)
def test_the_output_has_the_names_of_files(tmp_path: Path, name: str, swapped: bool) -> None:
    names = [name, IN_FILES[name]]
    paths = [
        str(write(tmp_path / f"m{k}", {one: np.full((3, 2), 2.0 * k)}, format="pt"))
        for k, one in enumerate(reversed(names) if swapped else names)
    ]
    merge(MergeConfig(model_path_list=paths, output_path=str(tmp_path / "out")), progress=False)
    result = read(tmp_path / "out")
    assert list(result) == [name]
    assert (result[name] == 1).all()


def test_a_base_as_bert_was_published(tmp_path: Path) -> None:
    body = {"embeddings.LayerNorm.weight": np.ones(4), "encoder.layer.0.output.LayerNorm.bias": np.ones(4)}
    tuned = [write(tmp_path / f"m{k}", {f"bert.{name}": x + k for name, x in body.items()}, format="pt") for k in (1, 2)]
    old = {name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): x for name, x in body.items()}
    base = write(tmp_path / "base", old, format="pt")
    config = MergeConfig(model_path_list=[str(one) for one in tuned], base_model_path=str(base), merge_method="linear")
    config.output_path = str(tmp_path / "out")
    merge(config, progress=False)
    result = read(tmp_path / "out")
    assert sorted(result) == sorted(f"bert.{name}" for name in body)
    assert all((values == 2.5).all() for values in result.values())


def test_names_that_could_be_mistaken_stay(tmp_path: Path) -> None:
    """An encoder and a decoder of one name behind different words."""
    both = {"model.layers.0.w.weight": np.zeros((2, 2)), "language_model.layers.0.w.weight": np.ones((2, 2))}
    paths = [str(write(tmp_path / name, both)) for name in "ab"]
    merge(MergeConfig(model_path_list=paths, output_path=str(tmp_path / "out")), progress=False)
    np.testing.assert_array_equal(read(tmp_path / "out")["language_model.layers.0.w.weight"], np.ones((2, 2)))


@pytest.mark.parametrize("disk", ["model.", "language_model.model."])
def test_an_adapter_with_names_in_memory(tmp_path: Path, disk: str) -> None:
    """PEFT on transformers from 4.52 on, onto the base as the hub has it: W + (alpha / r) B A, worked out here."""
    generator = np.random.default_rng(0)
    weight, a, b = (generator.standard_normal(shape) for shape in ((6, 4), (2, 4), (6, 2)))
    name = f"{disk}layers.0.self_attn.q_proj.weight"
    base = write(tmp_path / "base", {name: weight, "visual.x.weight": np.ones((2, 2))}, "float64", format="pt")
    module = "base_model.model.model.language_model.layers.0.self_attn.q_proj"
    factors = {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
    lora = write(tmp_path / "lora", factors, "float64", prefix="adapter_model", format="pt")
    (lora / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))
    config = MergeConfig(lora_model_path=str(lora), base_model_path=str(base), output_path=str(tmp_path / "out"))
    merge(config, progress=False)
    np.testing.assert_allclose(read(tmp_path / "out")[name], weight + 2 * b @ a)


def test_a_stray_buffer_does_not_say_how_to_name(tmp_path: Path) -> None:
    one = write(tmp_path / "a", {"model.layers.0.mlp.up_proj.weight": np.ones((3, 2))}, format="pt")
    named = {"language_model.model.layers.0.mlp.up_proj.weight": np.ones((3, 2)), "model.rotary_emb.inv_freq": np.ones(2)}
    other = write(tmp_path / "b", named, format="pt")
    merge(MergeConfig(model_path_list=[str(one), str(other)], output_path=str(tmp_path / "out")), progress=False)
    assert list(read(tmp_path / "out")) == ["model.layers.0.mlp.up_proj.weight"]
