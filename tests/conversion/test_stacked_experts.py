"""Test that stacked experts, as transformers 5 has them in memory, merge with files of one matrix per expert."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from paddle_merge import CheckpointError, MergeConfig, merge
from tests.support.checkpoints import read, write

EXPERTS, HIDDEN, INNER = 3, 4, 2
# How files call a layer, its router and an expert's gate, up and down; and how transformers 5 calls the layer and the router
# in memory (its conversion_mapping.py).
FAMILIES = {
    "mixtral": ("block_sparse_moe", "gate", ("w1", "w3", "w2"), "mlp", "gate"),
    "qwen3_moe": ("mlp", "gate", ("gate_proj", "up_proj", "down_proj"), "mlp", "gate"),
    "phimoe": ("block_sparse_moe", "gate", ("w1", "w3", "w2"), "mlp", "router"),
    "jamba": ("feed_forward", "router", ("gate_proj", "up_proj", "down_proj"), "feed_forward", "router"),
}


def in_file(family: str, value: float) -> dict[str, np.ndarray]:
    """An expert's matrices hold value + 10 * expert + 1, 2 or 3."""
    layer, router, words, _, _ = FAMILIES[family]
    result = {f"model.layers.0.{layer}.{router}.weight": np.full((EXPERTS, HIDDEN), float(value))}
    for expert in range(EXPERTS):
        for number, (word, shape) in enumerate(zip(words, [(INNER, HIDDEN), (INNER, HIDDEN), (HIDDEN, INNER)], strict=True)):
            values = np.full(shape, value + 10.0 * expert + number + 1)
            result[f"model.layers.0.{layer}.experts.{expert}.{word}.weight"] = values
    return result


def in_memory(family: str, value: float) -> dict[str, np.ndarray]:
    _, _, _, layer, router = FAMILIES[family]
    first = value + 10 * np.arange(EXPERTS).reshape(EXPERTS, 1, 1)
    both = [first + number + np.zeros((EXPERTS, INNER, HIDDEN)) for number in (1, 2)]
    return {
        f"model.layers.0.{layer}.{router}.weight": np.full((EXPERTS, HIDDEN), float(value)),
        f"model.layers.0.{layer}.experts.gate_up_proj": np.concatenate(both, axis=1),
        f"model.layers.0.{layer}.experts.down_proj": first + 3 + np.zeros((EXPERTS, HIDDEN, INNER)),
    }


def average(tmp_path: Path, *states: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    paths = [str(write(tmp_path / f"m{number}", state, format="pt")) for number, state in enumerate(states)]
    merge(MergeConfig(model_path_list=paths, output_path=str(tmp_path / "out")), progress=False)
    return read(tmp_path / "out")


@pytest.mark.parametrize("first", ["file", "memory"])
@pytest.mark.parametrize("family", FAMILIES)
def test_stacked_with_apart(tmp_path: Path, family: str, first: str) -> None:
    """The output has the names of files, whichever comes first; 100 and 200 give 150."""
    states = [in_file(family, 100), in_memory(family, 200)]
    result = average(tmp_path, *(states if first == "file" else states[::-1]))
    expected = in_file(family, 150)
    assert result.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(result[name], values)


def test_experts_without_a_gate(tmp_path: Path) -> None:
    """Nemotron-H's: an up and a down matrix; in memory below model, in files below backbone."""
    up = np.arange(EXPERTS * INNER * HIDDEN, dtype=float).reshape(EXPERTS, INNER, HIDDEN)
    files = {f"backbone.layers.1.mixer.experts.{e}.up_proj.weight": up[e] + 2 for e in range(EXPERTS)}
    files |= {f"backbone.layers.1.mixer.experts.{e}.down_proj.weight": up[e].T + 4 for e in range(EXPERTS)}
    stacked = {"model.layers.1.mixer.experts.up_proj": up, "model.layers.1.mixer.experts.down_proj": up.transpose(0, 2, 1)}
    result = average(tmp_path, stacked, files)
    assert result.keys() == files.keys()
    for e in range(EXPERTS):
        np.testing.assert_array_equal(result[f"backbone.layers.1.mixer.experts.{e}.up_proj.weight"], up[e] + 1)
        np.testing.assert_array_equal(result[f"backbone.layers.1.mixer.experts.{e}.down_proj.weight"], up[e].T + 2)


def test_all_stacked_stay_stacked(tmp_path: Path) -> None:
    result = average(tmp_path, in_memory("mixtral", 0), in_memory("mixtral", 2))
    assert result.keys() == in_memory("mixtral", 0).keys()


def test_stacks_beside_experts_that_are_apart_stay(tmp_path: Path) -> None:
    """Where all inputs have the same names; and where one of them begins otherwise."""
    further = {name.replace("model.layers", "mtp.layers"): x for name, x in in_file("qwen3_moe", 1).items()}
    state = in_memory("qwen3_moe", 1) | further
    assert average(tmp_path, state, state).keys() == state.keys()
    wrapped = {f"module.{name}": x for name, x in state.items()}
    assert average(tmp_path / "wrapped", state, wrapped).keys() == state.keys()


def test_stacked_otherwise_is_refused(tmp_path: Path) -> None:
    """Experts whose matrices are transposed, as some families store them, are not taken for this."""
    turned = {name: np.swapaxes(x, -1, -2).copy() if x.ndim == 3 else x for name, x in in_memory("qwen3_moe", 1).items()}
    with pytest.raises(CheckpointError, match="missing in"):
        average(tmp_path, in_file("qwen3_moe", 0), turned)
