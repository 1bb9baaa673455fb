"""Test mixtures of experts made of dense models: transformers opens them without a tensor too few or too many, copies
of one model compute what the model does, PaddleFormers and PaddleNLP have the same weights, and routers are made of the
hidden states that each library computes.

test_loaders.py says what this needs.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_merge import MergeConfig, merge
from paddle_merge.run import gates
from tests.loaders import test_loaders
from tests.support import libraries
from tests.support.checkpoints import read
from tests.support.dense import write_dense
from tests.support.libraries import LIBRARIES, VARIABLES

pytestmark = test_loaders.pytestmark

TWO = "experts: [{source_model: a}, {source_model: b, residual_scale: 0.5}]\n"
SHARED = "shared_experts: [{source_model: base, residual_scale: 0.5}]\n"
SILENT = SHARED.replace("0.5", "0.0")
COPIES = "upcycle: {experts: 3}\n"
# Name -> dense family, recipe, family of the mixture, and the layouts in which Paddle's libraries have its weights.
MIXTURES: dict[str, tuple[str, str, str, tuple[str, ...]]] = {
    "mixtral": ("llama", TWO, "mixtral", ("paddlenlp",)),
    "mixtral of copies": ("llama", COPIES, "mixtral", ()),
    "mistral": ("mistral", COPIES, "mixtral", ()),
    "qwen2_moe": ("qwen2", TWO + SHARED, "qwen2_moe", ("paddlenlp", "paddleformers")),
    "qwen2_moe of llama": ("llama", f"{TWO}{SHARED}architecture: qwen2_moe\n", "qwen2_moe", ("paddleformers",)),
    "qwen2_moe of mistral's copies": ("mistral", f"{COPIES}{SILENT}architecture: qwen2_moe\n", "qwen2_moe", ()),
    "qwen3_moe": ("qwen3", TWO, "qwen3_moe", ("paddleformers",)),
    "qwen3_moe of copies": ("qwen3", COPIES, "qwen3_moe", ()),
    "ernie4_5_moe": ("ernie4_5", TWO, "ernie4_5_moe", ("paddleformers",)),
    "ernie4_5_moe, shared": ("ernie4_5", TWO + SHARED, "ernie4_5_moe", ("paddleformers",)),
    "ernie4_5_moe of copies": ("ernie4_5", COPIES, "ernie4_5_moe", ()),
}
DENSE = ("llama", "mistral", "qwen2", "qwen3", "ernie4_5")
WINDOW = {"mistral": {"sliding_window": 3}}  # which the text of 8 tokens is longer than


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """(library, name) -> what it says; name -> transformers' logits."""
    folder = tmp_path_factory.mktemp("mixtures")
    for kind in DENSE:
        for seed, name in enumerate(("base", "a", "b")):
            write_dense(folder / "dense" / kind / name, kind, seed, **WINDOW.get(kind, {}))
    jobs: dict[str, dict[str, list[dict[str, Any]]]] = {library: {"load": []} for library in LIBRARIES}
    jobs["transformers"]["load"] += [opened(kind, folder / "dense" / kind / "base", kind) for kind in DENSE]
    for name, (kind, recipe, family, layouts) in MIXTURES.items():
        out = str(folder / name)
        text = f"base_model: base\ngate_mode: random\n{recipe}"
        for model in ("base", "a", "b"):
            text = text.replace(f": {model}", f": {folder / 'dense' / kind / model}")
        merge(MergeConfig(recipe_yaml=text, output_path=out), progress=False)
        jobs["transformers"]["load"].append(opened(name, out, family))
        for layout in layouts:
            own, alone = f"{out}, {layout}", f"models: [{{model: {json.dumps(out)}}}]\nmerge_method: passthrough\n"
            merge(MergeConfig(recipe_yaml=alone, output_path=own, output_layout=layout), progress=False)
            expected = [f"{own}/model.safetensors"]
            jobs[layout]["load"].append(
                {"name": name, "folder": out, "family": family, "layout": "hf", "expected": expected}
            )
    scripts = {"transformers": "with_transformers.py"}
    scripts |= {library: f"families_{library}.py" for library in ("paddlenlp", "paddleformers")}
    for library, job in jobs.items():
        (folder / library).mkdir()
        (folder / library / "job.json").write_text(json.dumps(job))
    libraries.run({library: (name, str(folder / library / "job.json")) for library, name in scripts.items()})
    found: dict[str, Any] = dict(np.load(folder / "transformers" / "logits.npz"))
    for library in LIBRARIES:
        answers = json.loads((folder / library / "answers.json").read_text())
        found |= {f"{library}, {name}": said for name, said in answers.items()}
    return found


def opened(name: str, folder: Path | str, family: str) -> dict[str, Any]:
    return {"name": name, "folder": str(folder), "model_type": family, "options": {}}


@pytest.mark.parametrize("name", MIXTURES)
def test_transformers_finds_every_tensor_and_no_other(loaded: dict[str, Any], name: str) -> None:
    assert loaded[f"transformers, {name}"] == "float32, num_beams None"
    assert np.isfinite(loaded[name]).all()


@pytest.mark.parametrize("name", [name for name, (_, recipe, *_) in MIXTURES.items() if recipe.startswith(COPIES)])
def test_copies_of_a_model_compute_what_it_does(loaded: dict[str, Any], name: str) -> None:
    np.testing.assert_allclose(loaded[name], loaded[MIXTURES[name][0]], rtol=1e-4, atol=1e-4)
    assert np.abs(loaded[name]).max() > 0.5


def test_other_experts_compute_something_else(loaded: dict[str, Any]) -> None:
    assert np.abs(loaded["mixtral"] - loaded["llama"]).max() > 0.1


@pytest.mark.parametrize(("name", "library"), [(name, one) for name, (*_, layouts) in MIXTURES.items() for one in layouts])
def test_paddles_libraries_have_the_weights(loaded: dict[str, Any], name: str, library: str) -> None:
    """Those that paddle_merge stores in the library's own layout."""
    assert loaded[f"{library}, {name}"] == ""


GROUPS = [[[1, 7, 8, 9, 10], [1, 11]], [[1, 12, 13]], [[1, 20, 21, 22]]]
PROMPTS = """
experts:
- {source_model: a, positive_prompts: ["w7 w8 w9 w10", "w11"], negative_prompts: ["w12 w13"]}
- {source_model: b, positive_prompts: ["w20 w21 w22"]}
"""


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Side -> transformers' states of all prompts, padded on that side: [prompts, layers, (last, mean), hidden]; library ->
    ours: [(last, mean), groups, layers, hidden]."""
    folder = tmp_path_factory.mktemp("states")
    job = {"model": str(write_dense(folder / "base", "llama", 0)), "groups": GROUPS}
    job["prompts"] = [prompt for group in GROUPS for prompt in group]
    found = {}
    for side in ("left", "right"):
        (folder / side).mkdir()
        (folder / side / "job.json").write_text(json.dumps({**job, "side": side}))
        libraries.run({"transformers": ("states_transformers.py", str(folder / side / "job.json"))})
        found[side] = np.load(folder / side / "states.npy")
    libraries.run({library: ("states.py", library, str(folder / "left" / "job.json")) for library in LIBRARIES})
    return found | {library: np.load(folder / "left" / f"{library}.npy") for library in LIBRARIES}


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_hidden_states_are_those_of_padded_prompts(states: dict[str, np.ndarray], library: str, side: str) -> None:
    """Whatever side the padding is on, with a mask for it."""
    first, *others = states[side].astype(np.float64)
    expected = np.stack([(first + others[0]) / 2, others[1], others[2]])  # [groups, layers, (last, mean), hidden]
    np.testing.assert_allclose(states[library], np.moveaxis(expected, 2, 0), rtol=1e-3, atol=1e-4)


def test_routers_are_made_of_them(states: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("base", "a", "b")):
        write_dense(tmp_path / name, "llama", seed)
    monkeypatch.setattr(gates, "_LIBRARIES", {"json": "json"})  # this interpreter has none; the other one has
    monkeypatch.setattr(gates.sys, "executable", os.environ[VARIABLES["transformers"]])
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    merge(MergeConfig(recipe_yaml=f"base_model: base\ngate_mode: hidden\n{PROMPTS}", output_path="out"), progress=False)
    positive, negative, other = states["transformers"][0]
    for layer in range(2):
        rows = np.stack([positive[layer] - negative[layer], other[layer]])
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        found = read(Path("out"))[f"model.layers.{layer}.block_sparse_moe.gate.weight"]
        np.testing.assert_allclose(found, rows, rtol=1e-6)
