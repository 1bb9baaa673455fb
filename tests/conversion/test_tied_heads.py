"""Test merges of models that tie lm_head to the embedding with models that don't."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_merge import CheckpointError, MergeConfig, merge
from paddle_merge.checkpoints.config_json import read_config
from tests.support.checkpoints import read, write

E, H = "model.embed_tokens.weight", "lm_head.weight"
CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 4, "intermediate_size": 6}


def model(folder: Path, seed: int, head: str, tied: bool, **more: Any) -> str:
    """head: "none", "copy" of the embedding, or "own"."""
    generator = np.random.default_rng(seed)
    tensors = {E: generator.standard_normal((12, 4)), "model.layers.0.mlp.up_proj.weight": generator.standard_normal((6, 4))}
    if head != "none":
        tensors[H] = tensors[E].copy() if head == "copy" else generator.standard_normal((12, 4))
    config = {**CONFIG, "tie_word_embeddings": tied, **more}
    return str(write(folder, tensors, "float64", format="pt", config=config))


def merged(folder: Path, paths: list[str], **fields: Any) -> tuple[dict[str, np.ndarray], Any]:
    out = folder / "out"
    merge(MergeConfig(model_path_list=paths, output_path=str(out), **fields), progress=False)
    return read(out), json.loads((out / "config.json").read_text())["tie_word_embeddings"]


@pytest.mark.parametrize("head", ["own", "copy"])
@pytest.mark.parametrize("first", ["tied", "untied"])
def test_by_default_the_output_is_untied(tmp_path: Path, head: str, first: str) -> None:
    tied, untied = model(tmp_path / "a", 0, "none", True), model(tmp_path / "b", 1, head, False)
    result, says = merged(tmp_path, [tied, untied] if first == "tied" else [untied, tied])
    one, other = read(Path(tied)), read(Path(untied))
    np.testing.assert_allclose(result[E], (one[E] + other[E]) / 2)
    np.testing.assert_allclose(result[H], (one[E] + other[H]) / 2)
    assert says is False


def test_keep_leaves_lm_head_out(tmp_path: Path) -> None:
    paths = [model(tmp_path / "a", 0, "own", False), model(tmp_path / "b", 1, "none", True)]
    result, says = merged(tmp_path, paths, tie="keep")
    assert H not in result
    assert says is True


def test_untie_gives_tied_models_two_matrices(tmp_path: Path) -> None:
    """With the same masks, as they are one tensor in every input."""
    paths = [model(tmp_path / name, seed, "none", True) for seed, name in enumerate("ab")]
    base = model(tmp_path / "base", 2, "none", True)
    result, says = merged(tmp_path, paths, tie="untie", base_model_path=base, merge_method="dare_ties")
    np.testing.assert_array_equal(result[E], result[H])
    assert says is False


@pytest.mark.parametrize("tie", ["auto", "keep"])
def test_models_that_agree_stay_as_they_are(tmp_path: Path, tie: str) -> None:
    paths = [model(tmp_path / name, seed, "none", True) for seed, name in enumerate("ab")]
    result, says = merged(tmp_path, paths, tie=tie)
    assert H not in result
    assert says is True


def test_a_head_that_contradicts_config_json_is_refused(tmp_path: Path) -> None:
    paths = [model(tmp_path / "a", 0, "own", True), model(tmp_path / "b", 1, "own", False)]
    with pytest.raises(CheckpointError, match="ties lm_head to the embedding, but their values differ"):
        merged(tmp_path, paths)


def test_the_whole_models_word_counts_more_than_its_text_parts(tmp_path: Path) -> None:
    """Qwen3-VL-MoE as transformers 5 saves it."""
    folder = model(tmp_path / "a", 0, "own", False, text_config={"tie_word_embeddings": True, "hidden_size": 4})
    assert read_config(folder)["tie_word_embeddings"] is False


@pytest.mark.parametrize("trains", ["both", "embedding"])
def test_an_adapter_that_trained_them_apart_unties_its_base(tmp_path: Path, trains: str) -> None:
    base = model(tmp_path / "base", 0, "none", True)
    generator = np.random.default_rng(5)
    new = {f"base_model.model.{E}": generator.standard_normal((12, 4))}
    if trains == "both":
        new[f"base_model.model.{H}"] = generator.standard_normal((12, 4))
    lora = write(tmp_path / "lora", new, "float64", prefix="adapter_model")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "modules_to_save": ["embed_tokens", "lm_head"]}
    (lora / "adapter_config.json").write_text(json.dumps(config))
    (lora / "config.json").unlink()
    out = tmp_path / "out"
    merge(MergeConfig(lora_model_path=str(lora), base_model_path=base, output_path=str(out)), progress=False)
    result = read(out)
    np.testing.assert_array_equal(result[E], new[f"base_model.model.{E}"])
    np.testing.assert_array_equal(result[H], new.get(f"base_model.model.{H}", read(Path(base))[E]))
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False


@pytest.mark.parametrize("tie", ["untie", "keep"])
def test_a_layout_that_must_be_known_is_asked_for(tmp_path: Path, tie: str) -> None:
    """All matrices are square, and nothing says which library wrote them."""
    tensors = {E: np.ones((8, 4)), "model.layers.0.self_attn.q_proj.weight": np.ones((4, 4))}
    paths = []
    for name, tied in (("a", True), ("b", False)):
        held = tensors if tied else {**tensors, H: np.ones((8, 4))}
        paths.append(str(write(tmp_path / name, held, config={**CONFIG, "tie_word_embeddings": tied})))
    with pytest.raises(CheckpointError, match=f"--tie {tie}: the layout of .* is unknown.*state it with --layout"):
        merged(tmp_path, paths, tie=tie)
    result, says = merged(tmp_path, paths, tie=tie, layout=["hf", "hf"])
    assert (H in result) == (tie == "untie")
    assert says is (tie == "keep")


def test_an_embedding_that_is_not_found_can_not_be_untied(tmp_path: Path) -> None:
    """Else config.json would promise an lm_head that isn't there, and loaders would make one up."""
    tensors = {"model.embed_in.weight": np.ones((8, 4)), "model.layers.0.mlp.up_proj.weight": np.ones((6, 4))}
    path = str(write(tmp_path / "a", tensors, format="pt", config={**CONFIG, "tie_word_embeddings": True}))
    with pytest.raises(CheckpointError, match="isn't found by its name, so it can't be untied"):
        merged(tmp_path, [path, path], tie="untie")
