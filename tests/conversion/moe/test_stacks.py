"""Test that experts are stored as a matrix for each, or as stacks, and that the way back gives the same bytes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from paddle_merge import CheckpointError, MergeConfig, merge
from tests.support.adapters import lora
from tests.support.checkpoints import read, write
from tests.support.experts import EXPERTS, HIDDEN, LAYERS, NEURONS, config, layer, stored

State = dict[str, np.ndarray]


@pytest.fixture
def layers() -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(0)
    return [layer(random) for _ in range(LAYERS)]


def saved(tmp_path: Path, state: State, family: str, **settings: object) -> State:
    """What a merge of the model with itself writes."""
    path = str(
        write(
            tmp_path / "model",
            state,
            "bfloat16",
            format="pt",
            config=config(family) | {"intermediate_size": 9, "tie_word_embeddings": True},
        )
    )
    merge(MergeConfig(model_path_list=[path, path], output_path=str(tmp_path / "out"), **settings), progress=False)  # type: ignore[arg-type]
    return read(tmp_path / "out")


def equal(one: State, other: State) -> None:
    assert sorted(one) == sorted(other)
    for name, values in one.items():
        np.testing.assert_array_equal(values, other[name], err_msg=name)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "deepseek_v3", "ernie4_5_moe"])
def test_there_and_back(tmp_path: Path, layers: list[State], family: str) -> None:
    split = saved(tmp_path / "0", stored(layers, family), family)
    stacks = saved(tmp_path / "1", stored(layers, family), family, expert_layout="stacked")
    names = [name for name in stacks if ".experts." in name]
    assert {name.rpartition(".")[2] for name in names} == {"gate_up_proj", "down_proj"}
    assert all(".experts.0." not in name for name in names)
    first = next(name for name in names if name.endswith("gate_up_proj") and ".0." in name)
    expected = np.concatenate([layers[0]["gate"], layers[0]["up"]], axis=1)
    np.testing.assert_allclose(stacks[first], expected, rtol=2**-8)  # bfloat16
    equal(saved(tmp_path / "2", stacks, family, expert_layout="split"), split)


@pytest.mark.parametrize("family", ["mixtral", "phimoe", "lfm2_moe"])
def test_names_in_memory_become_those_of_files(tmp_path: Path, layers: list[State], family: str) -> None:
    """As transformers 5.23 has them in its conversion_mapping.py."""
    memory = {"mixtral": ("mlp", "gate"), "phimoe": ("mlp", "router"), "lfm2_moe": ("feed_forward", "gate")}[family]
    files = {"lfm2_moe": "feed_forward"}.get(family, "block_sparse_moe")
    state = {
        name.replace(".mlp.gate.", f".{memory[0]}.{memory[1]}.").replace(".mlp.", f".{memory[0]}."): values
        for name, values in stored(layers, "stacked").items()
        if "shared" not in name
    }
    expected = {
        name.replace("block_sparse_moe", files): values
        for name, values in stored(layers, "mixtral").items()
        if "shared" not in name
    }
    split = saved(tmp_path, state, family, expert_layout="split")
    assert sorted(split) == sorted(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(split[name], values, rtol=2**-8, err_msg=name)


def test_stacks_become_what_paddleformers_has(tmp_path: Path, layers: list[State]) -> None:
    """A matrix [in, out] for each expert, gate and up in one; and back to Hugging Face's files."""
    paddle = saved(tmp_path / "1", stored(layers, "stacked"), "qwen3_moe", output_layout="paddleformers")
    for number, one in enumerate(layers):
        start = f"model.layers.{number}.mlp.experts."
        for expert in range(EXPERTS):
            both = np.concatenate([one["gate"][expert], one["up"][expert]]).T
            np.testing.assert_allclose(paddle[f"{start}{expert}.up_gate_proj.weight"], both, rtol=2**-8)
            np.testing.assert_allclose(paddle[f"{start}{expert}.down_proj.weight"], one["down"][expert].T, rtol=2**-8)
    back = saved(tmp_path / "2", paddle, "qwen3_moe", layout=["paddleformers"] * 2, output_layout="hf")
    equal(back, saved(tmp_path / "3", stored(layers, "qwen3_moe"), "qwen3_moe"))
    stacks = saved(
        tmp_path / "4", paddle, "qwen3_moe", layout=["paddleformers"] * 2, output_layout="hf", expert_layout="stacked"
    )
    equal(stacks, saved(tmp_path / "5", stored(layers, "stacked"), "qwen3_moe"))


@pytest.mark.parametrize("family", ["gpt_oss", "llama4_text", "granitemoe"])
def test_what_files_stack_stays(tmp_path: Path, layers: list[State], family: str) -> None:
    equal(
        saved(tmp_path / "1", stored(layers, family), family, expert_layout="stacked"),
        saved(tmp_path / "2", stored(layers, family), family),
    )
    with pytest.raises(
        CheckpointError, match=r"is stacked in the files of its family, too; leave out --expert_layout split"
    ):
        saved(tmp_path / "3", stored(layers, family), family, expert_layout="split")


def test_what_can_not_be_stacked(tmp_path: Path, layers: list[State]) -> None:
    state = stored(layers, "qwen3_moe")
    with pytest.raises(CheckpointError, match=re.escape("is for Hugging Face's layout, and this is paddleformers")):
        saved(tmp_path / "1", state, "qwen3_moe", output_layout="paddleformers", expert_layout="stacked")
    odd = {name: values for name, values in state.items() if "gate_proj" not in name}
    with pytest.raises(CheckpointError, match="have down_proj, up_proj, which no library stacks; leave out"):
        saved(tmp_path / "2", odd, "qwen3_moe", expert_layout="stacked")
    assert (EXPERTS, NEURONS, HIDDEN) == (4, 5, 6)


def test_an_adapter_of_single_experts(tmp_path: Path, layers: list[State]) -> None:
    """Is folded into split experts, also those of a stacked base; to stack them takes a second merge."""
    name, split = "model.layers.1.mlp.experts.2.down_proj", stored(layers, "qwen3_moe")
    adapter = lora(tmp_path / "lora", {name: (HIDDEN, NEURONS, 2)}, seed=1)
    folded = []
    for number, state in enumerate((split, stored(layers, "stacked"))):
        base = str(write(tmp_path / f"base{number}", state, format="pt", config=config("qwen3_moe")))
        given = {"lora_model_path": adapter, "base_model_path": base, "output_path": str(tmp_path / f"out{number}")}
        merge(MergeConfig(**given, expert_layout="split"), progress=False)  # type: ignore[arg-type]
        folded.append(read(tmp_path / f"out{number}"))
    equal(*folded)
    assert (folded[0][f"{name}.weight"] != split[f"{name}.weight"].astype(np.float32)).any()
    with pytest.raises(
        CheckpointError, match=r"adapts single experts, which --expert_layout stacked can't stack: fold it into"
    ):
        merge(MergeConfig(**{**given, "output_path": str(tmp_path / "out")}, expert_layout="stacked"), progress=False)  # type: ignore[arg-type]


def test_a_dense_model_has_no_experts_to_stack(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    saved(tmp_path, {"model.layers.0.mlp.up_proj.weight": np.ones((4, HIDDEN))}, "qwen3", expert_layout="stacked")
    assert "--expert_layout stacked has no effect: the models have no mixture of experts" in caplog.text
