"""Test --missing_tensors: merges of models that don't have the same tensors.

mergekit 0.1.5 (mergekit-pytorch --tensor-union and --tensor-intersection) was compared by hand.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_merge import CheckpointError, ConfigError, MergeConfig, merge
from tests.support.checkpoints import read, write

ALL, A, AB, BASE = "model.norm.weight", "a.weight", "ab.weight", "base.weight"


def model(path: str, **values: float) -> None:
    names = {"norm": ALL, "a": A, "ab": AB, "base": BASE}
    write(Path(path), {names[name]: np.full((2, 3), float(value)) for name, value in values.items()})


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All have the norm. Only a has `a`, a and b have `ab`, only the base `base`; c has the norm alone."""
    monkeypatch.chdir(tmp_path)
    model("a", norm=1, a=5, ab=2)
    model("b", norm=3, ab=4)
    model("c", norm=8)
    model("base", norm=0, base=7, ab=1)
    return tmp_path


def made(mode: str, models: str = "abc", base: str | None = "base", **more: Any) -> dict[str, float]:
    """The merged tensors, all elements of which are equal, by name."""
    config = MergeConfig(
        model_path_list=list(models), base_model_path=base, missing_tensors=mode, output_path="out", overwrite=True, **more
    )
    merge(config, progress=False)
    return {name: float(values.mean()) for name, values in read(Path("out")).items() if np.ptp(values) == 0}


def account() -> dict[str, str]:
    found = json.loads(Path("account.json").read_text())
    return {one["name"]: "; ".join([one["how"], *one["notes"]]) for one in found["tensors"]}


def test_union(here: Path) -> None:
    """ab: 1 + mean of 2 - 1 and 4 - 1 = 3, of the two models that have it. What one input has alone stays as it is."""
    assert made("union", account="account.json") == {ALL: 4, AB: 3, BASE: 7, A: 5}
    assert account() == {
        ALL: "linear of 3 models and the base",
        AB: "linear of 2 models and the base; not in c",
        BASE: "as it is in the only input that has it; not in a, b, c",
        A: "as it is in the only input that has it; not in b, c, base",
    }


def test_weights_belong_to_their_models(here: Path) -> None:
    """Without a base: ab is (1 * 2 + 3 * 4) / 4, by the weights of the two models that have it."""
    found = made("union", base=None, weight_list=[1.0, 3.0, 4.0])
    assert found == {ALL: (1 + 9 + 32) / 8, AB: 3.5, A: 5}


def test_what_the_base_lacks_is_the_mean(here: Path) -> None:
    model("bare", norm=0)
    assert made(
        "union", base="bare", merge_method="task_arithmetic", weight_list=[0.5, 0.5, 0.5], account="account.json"
    ) == {
        ALL: 6,
        AB: 3,
        A: 5,
    }
    assert account()[AB] == "mean of 2 models; not in c, bare"


def test_methods_of_a_fixed_number_of_models(here: Path) -> None:
    """slerp takes two. c lacks ab, so it stays a's; with --tie nothing changes."""
    assert made("union", "ac", None, merge_method="slerp")[AB] == 2


def test_fill(here: Path) -> None:
    """The base's tensors: `a`, which it lacks, is left out, and the account says so."""
    assert made("fill", account="account.json") == {ALL: 4, AB: 3, BASE: 7}
    inputs = {one["path"]: one["each"] for one in json.loads(Path("account.json").read_text())["inputs"]}
    assert [one["left_out"] for one in inputs["a"] if one["name"] == A] == ["the base lacks it (--missing_tensors fill)"]


def test_a_language_model_into_a_vision_model(here: Path) -> None:
    """As mergekit's fill_missing_params: one model in place of the base's language model, whose names begin otherwise."""
    names = ("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "model.norm.weight")
    write(Path("language"), {name: np.full((4, 4), 2.0) for name in names})
    whole = {f"language_model.{name}": np.ones((4, 4)) for name in names}
    write(Path("seeing"), {**whole, "vision_tower.patch.weight": np.full((2, 2), 9.0)})
    merge(
        MergeConfig(model_path_list=["language"], base_model_path="seeing", missing_tensors="fill", output_path="out"),
        progress=False,
    )
    found = {name: float(values.mean()) for name, values in read(Path("out")).items()}
    assert found == {**{f"language_model.{name}": 2.0 for name in names}, "vision_tower.patch.weight": 9.0}


def test_intersection(here: Path) -> None:
    assert made("intersection") == {ALL: 4}
    assert made("intersection", "ab") == {ALL: 2, AB: 3}


def test_the_record_repeats_it(here: Path) -> None:
    wanted = made("union", merge_method="dare_linear", seed=3, n_process=2)
    record = json.loads(Path("out/merge_config.json").read_text())
    assert record["missing_tensors"] == "union"
    merge(MergeConfig.from_mapping({**record, "output_path": "again", "n_process": 1}), progress=False)
    assert Path("again/model.safetensors").read_bytes() == Path("out/model.safetensors").read_bytes()
    assert wanted.keys() <= read(Path("again")).keys()


def test_refusals(here: Path) -> None:
    with pytest.raises(CheckpointError, match=r"--missing_tensors union merges it nevertheless"):
        made("error")
    with pytest.raises(ConfigError, match="--missing_tensors fill: fills in the tensors of the base model, so it needs"):
        made("fill", base=None)
    with pytest.raises(ConfigError, match="--missing_tensors 'all' must be one of error, union, fill, intersection"):
        made("all")
    slices = "merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [0, 1]}]}]\n"
    with pytest.raises(ConfigError, match="--missing_tensors union: is only for a single merge of whole models"):
        merge(MergeConfig(recipe_yaml=slices, missing_tensors="union", output_path="out"), progress=False)
    write(here / "d", {ALL: np.ones((9, 9))})
    with pytest.raises(CheckpointError, match=r"different shapes: \[2, 3\] in a, \[9, 9\] in d$"):  # modules are refused
        made("union", "ad", None)


def test_the_first_tensor_may_be_of_some_models_only(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Plan and card still show the method's parameters, and the weight of each model."""
    for name, only in (("x", {"a.first": 1.0}), ("y", {"b.first": 2.0})):
        write(here / name, {key: np.full(2, value) for key, value in {**only, "z.last": 4.0}.items()})
    merge(
        MergeConfig(model_path_list=["x", "y"], weight_list=[0.25, 0.75], missing_tensors="union", output_path="out"),
        progress=False,
    )
    assert "0.75" in Path("out/README.md").read_text()
    assert {name: values.tolist() for name, values in read(Path("out")).items()} == {
        "a.first": [1, 1],
        "z.last": [4, 4],
        "b.first": [2, 2],
    }


@pytest.mark.parametrize(("mode", "paths", "says"), [("union", "ab", (2, 3, "b")), ("intersection", "ba", (3, 2, "a"))])
def test_layers_that_config_json_does_not_count(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    paths: str,
    says: tuple[int, int, str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A loader would leave out the last layer, or look for one that isn't there."""
    monkeypatch.chdir(tmp_path)
    for name, depth in (("a", 2), ("b", 3)):
        tensors = {f"model.layers.{k}.up_proj.weight": np.ones((2, 3)) for k in range(depth)}
        write(Path(name), tensors, config={"num_hidden_layers": depth})
    made(mode, paths, None)
    counted, held, other = says
    assert f"num_hidden_layers {counted}, and the output has {held} layers: loaders go by config.json" in caplog.text
    assert f"; --config_from {other} fits" in caplog.text
    caplog.clear()
    made(mode, paths, None, config_from=other)
    assert "loaders go by config.json" not in caplog.text
