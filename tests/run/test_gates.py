"""Test mixtures of experts from the recipe to the files: what experts, routers and everything else hold."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_merge import MergeConfig, MergeError, merge
from paddle_merge.commands.verify.verify import verify
from paddle_merge.conversion.mixture.drawing import normal
from paddle_merge.run import gates
from tests.support.checkpoints import read, write
from tests.support.dense import HIDDEN, config, state, write_dense, write_tokenizer

GATE = "model.layers.{}.block_sparse_moe.gate.weight"
PROMPTS = """
experts:
- {source_model: a, positive_prompts: ["w7 w8", "w9"]}
- {source_model: b, positive_prompts: ["w3"], negative_prompts: ["w4 w5"]}
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("base", "a", "b")):
        write_dense(tmp_path / name, "llama", seed)
    return tmp_path


def made(text: str, out: str = "out", **fields: Any) -> dict[str, np.ndarray]:
    merge(MergeConfig(recipe_yaml=f"base_model: base\n{text}", output_path=out, **fields), progress=False)
    return read(Path(out))


def test_experts_are_their_models_mlps_and_the_rest_is_the_bases() -> None:
    text = "gate_mode: random\nseed: 4\nexperts: [{source_model: a}, {source_model: b, residual_scale: 0.5}]\n"
    found = made(text)
    base, a, b = (state("llama", seed) for seed in range(3))
    for layer in range(2):
        at, moe = f"model.layers.{layer}.mlp.", f"model.layers.{layer}.block_sparse_moe."
        for dense, word in (("gate_proj", "w1"), ("up_proj", "w3"), ("down_proj", "w2")):
            assert (found[f"{moe}experts.0.{word}.weight"] == a[f"{at}{dense}.weight"]).all()
            factor = 0.5 if word == "w2" else 1
            assert (found[f"{moe}experts.1.{word}.weight"] == factor * b[f"{at}{dense}.weight"]).all()
        name = f"{moe}gate.weight"
        drawn = normal(4, 0, name, 0, 2 * HIDDEN).reshape(2, HIDDEN)
        np.testing.assert_allclose(found[name], drawn, rtol=1e-6)
    rest = [name for name in base if ".mlp." not in name]
    assert all((found[name] == base[name]).all() for name in rest)
    assert set(found) == {*rest, *(name for name in found if "block_sparse_moe" in name)}
    said = json.loads(Path("out/config.json").read_text())
    assert (said["model_type"], said["num_local_experts"], said["dtype"]) == ("mixtral", 2, "float32")
    card = Path("out/README.md").read_text()
    assert "a mixture of 2 experts on the base of base" in card
    assert "| 1 | b |" in card
    assert (again := verify("out", None, 1, tolerant=False)).off == []
    assert len(again.remade) == len(found)
    # The record repeats the merge, and so do several workers.
    fields = {**MergeConfig.from_file("out/merge_config.json"), "output_path": "again", "n_process": 2}
    merge(MergeConfig.from_mapping(fields, "out/merge_config.json"), progress=False)
    assert Path("again/model.safetensors").read_bytes() == Path("out/model.safetensors").read_bytes()


def test_a_dry_run_does_without_the_values_of_prompts(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = f"base_model: base\ngate_mode: cheap_embed\n{PROMPTS}"
    merge(MergeConfig(recipe_yaml=recipe, output_path="out", dry_run=True), progress=False)
    printed = capsys.readouterr().out
    assert "time     about" in printed
    assert "what computes the routers of the prompts isn't counted" in printed
    assert not Path("out").exists()


def test_branch_train_mix_averages_what_is_no_expert() -> None:
    found = made("gate_mode: uniform_random\nnon_experts: average\nexperts: [{source_model: a}, {source_model: b}]\n")
    a, b = (state("llama", seed) for seed in (1, 2))
    for name in ("model.embed_tokens.weight", "model.layers.1.self_attn.k_proj.weight", "lm_head.weight"):
        np.testing.assert_allclose(found[name], (a[name] + b[name]) / 2, rtol=1e-6)
    assert (found["model.layers.1.block_sparse_moe.experts.1.w2.weight"] == b["model.layers.1.mlp.down_proj.weight"]).all()
    assert 0.2 < np.abs(found[GATE.format(0)]).max() <= 1 / math.sqrt(HIDDEN)


def test_upcycling_copies_the_base_and_draws_neurons_anew() -> None:
    plain, drop = made("upcycle: {experts: 3}", "o1"), made("upcycle: {experts: 3, drop_rate: 0.5}", "o2")
    base, changed = state("llama", 0), []
    for number in range(3):
        prefix = f"model.layers.0.block_sparse_moe.experts.{number}."
        for dense, word in (("gate_proj", "w1"), ("up_proj", "w3"), ("down_proj", "w2")):
            whole = base[f"model.layers.0.mlp.{dense}.weight"]
            assert (plain[f"{prefix}{word}.weight"] == whole).all()
            other = drop[f"{prefix}{word}.weight"] != whole
            changed.append(tuple(np.flatnonzero(other.all(axis=int(word != "w2")))))
            assert other.sum() == len(changed[-1]) * HIDDEN  # whole neurons, and nothing else
        assert len(changed[-1]) == 12  # half of 24
        assert changed[-1] == changed[-2] == changed[-3]
    assert len(set(changed)) == 3  # each expert others
    assert abs(plain[GATE.format(0)].std() - 0.02) < 0.01


def test_cheap_embed_by_hand(here: Path) -> None:
    """Embeddings of (3, 0) and (0, 4): "x y" is (3, 4), so (0.6, 0.8); minus y's (0, 1), so (0.6, -0.2) / sqrt(0.4)."""
    sizes = {"hidden_size": 2, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 2, "num_hidden_layers": 1}
    tensors = {"model.embed_tokens.weight": np.array([[9.0, 9], [0, 0], [3, 0], [0, 4]])}
    at = "model.layers.0."
    tensors |= {f"{at}self_attn.{word}_proj.weight": np.ones((2, 2)) for word in "qkvo"}
    tensors |= {f"{at}mlp.{word}_proj.weight": np.ones((3, 2)) for word in ("gate", "up")}
    tensors |= {f"{at}mlp.down_proj.weight": np.ones((2, 3)), "model.norm.weight": np.ones(2)}
    write(here / "base", tensors, format="pt", config=config("llama", inter=3, vocab=4, **sizes, tie_word_embeddings=True))
    write_tokenizer(here / "base", ["<unk>", "<s>", "x", "y"], bos={"content": "<s>"})  # type: ignore[arg-type]
    text = """
gate_mode: cheap_embed
experts:
- {source_model: base, positive_prompts: ["x", "y"], negative_prompts: ["y"]}
- {source_model: base, positive_prompts: ["x y", "x y"]}
"""
    found = made(text)[GATE.format(0)]
    np.testing.assert_allclose(found, [[0.6 / math.sqrt(0.4), -0.2 / math.sqrt(0.4)], [0.6, 0.8]], rtol=1e-6)


def test_cheap_embed_is_the_same_in_all_layers_and_begins_with_bos() -> None:
    found = made(f"gate_mode: cheap_embed\n{PROMPTS}dtype: bfloat16\n")
    rows = state("llama", 0)["model.embed_tokens.weight"].astype(np.float64)
    total = 2 * rows[1] + rows[7] + rows[8] + rows[9]
    assert (found[GATE.format(0)] == found[GATE.format(1)]).all()
    np.testing.assert_allclose(found[GATE.format(0)][0], total / np.linalg.norm(total), rtol=2**-8)
    assert verify("out", None, 1, tolerant=False).off == []


def test_hidden_states_are_of_the_layers_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the library: a row per layer, the mean of the positive prompts minus that of the negative ones."""
    asked = []

    def hidden(base: str, groups: Any, average: bool) -> np.ndarray:
        asked.append((base, groups, average))
        return np.array([[[3.0, 4] + [0] * 14, [0] * 16]] * 2 + [[[3.0, 0] + [0] * 14, [0, 2.0] + [0] * 14]])

    monkeypatch.setattr(gates, "_hidden", hidden)
    monkeypatch.setattr(gates, "_LIBRARIES", {"json": "json"})
    found = made(f"gate_mode: hidden_avg\n{PROMPTS}")
    assert asked == [("base", [[[1, 7, 8], [1, 9]], [[1, 3]], [[1, 4, 5]]], True)]
    np.testing.assert_allclose(found[GATE.format(0)][:, :2], [[0.6, 0.8], [0, 1]], rtol=1e-6)
    np.testing.assert_allclose(found[GATE.format(1)][:, :2], [[0, 0], [0, -1]], rtol=1e-6)
    again = verify("out", None, 1, tolerant=False)
    assert again.off == []
    assert "block_sparse_moe.gate.weight': not computed again, as a library did it" in again.notes[0].replace("'s", "")


def test_what_gates_need_is_said_before_work_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "_LIBRARIES", {"no_such_library": "json"})
    with pytest.raises(MergeError, match="gate_mode hidden computes with the base model, for which a library is needed"):
        made(f"gate_mode: hidden\n{PROMPTS}")
    Path("base/tokenizer.json").unlink()
    with pytest.raises(MergeError, match=r"base: has no tokenizer\.json, with which the prompts of gate_mode cheap_embed"):
        made(f"gate_mode: cheap_embed\n{PROMPTS}")
    assert not Path("out").exists()


def test_prompts_that_do_not_tell_experts_apart_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    """Of "<s> w7 w7" and "<s> w7 w7 w7" the sums have almost one direction."""
    prompts = [f"{{source_model: {name}, positive_prompts: [{text}]}}" for name, text in (("a", "w7 w7"), ("b", "w7 w7 w7"))]
    made(f"gate_mode: cheap_embed\nexperts: [{', '.join(prompts)}]\n")
    assert "the routers of all layers hardly tell the experts apart" in caplog.text


def test_no_mixture_is_made_of_models_in_memory() -> None:
    from paddle_merge.backends.engine import NUMPY
    from paddle_merge.recipe.yaml_read import parse
    from paddle_merge.run.state_dicts import merge_by_recipe

    recipe = parse("base_model: base\nupcycle: {experts: 2}", "r.yaml").recipe
    with pytest.raises(MergeError, match="a mixture of experts is made of checkpoints, not of state dicts"):
        merge_by_recipe([state("llama", 0)], recipe, NUMPY)
