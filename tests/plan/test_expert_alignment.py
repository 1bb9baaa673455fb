"""Test merges of mixtures of experts: by index, matched, with the base's router; and what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_merge import CheckpointError, MergeConfig, merge
from paddle_merge.commands.verify.verify import verify
from paddle_merge.conversion.moe.order import Orders
from paddle_merge.errors import MergeError, OutputError
from paddle_merge.plan import expert_alignment
from paddle_merge.plan.tensor_plan import Piece, TensorPlan
from paddle_merge.run.job import Report
from paddle_merge.run.output import journal
from paddle_merge.run.worker import Worker
from tests.support.adapters import lora
from tests.support.checkpoints import read, write
from tests.support.experts import EXPERTS, FAMILIES, HIDDEN, LAYERS, NEURONS, Layer, config, layer, shuffled, stored

FAMILY = "deepseek_v3"
Pair = tuple[Path, Path]


def scrambled(layers: list[Layer], seed: int, groups: int = 1) -> list[Layer]:
    """The same models in another order: groups of experts as wholes, experts within them, and neurons."""
    random, found = np.random.default_rng(seed), []
    for one in layers:
        size = EXPERTS // groups
        order = [int(g) * size + int(e) for g in random.permutation(groups) for e in random.permutation(size)]
        found.append(shuffled(one, order, np.array([random.permutation(NEURONS) for _ in range(EXPERTS)])))
    return found


@pytest.fixture
def pair(tmp_path: Path) -> Callable[..., Pair]:
    def make(family: str = FAMILY, groups: int = 1, noise: float = 0.0, dtype: str = "float32", **settings: object) -> Pair:
        random = np.random.default_rng(3)
        layers = [layer(random) for _ in range(LAYERS)]
        near = [{name: x + noise * random.normal(size=x.shape) for name, x in one.items()} for one in layers]
        its = config(family) | settings
        first = write(tmp_path / "first", stored(layers, family), dtype, format="pt", config=its)
        other = stored(scrambled(near, 5, groups), family)
        other = dict(reversed(other.items()))  # files have tensors in any order
        return first, write(tmp_path / "second", other, dtype, format="pt", config=its)

    return make


def merged(pair: Pair, out: str = "out", **settings: object) -> dict[str, np.ndarray]:
    folder = pair[0].parent / out
    settings = {"model_path_list": list(map(str, pair)), "output_path": str(folder), **settings}
    merge(MergeConfig(**settings), progress=False)  # type: ignore[arg-type]
    return read(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_scrambled_copy_is_put_in_order(pair: Callable[..., Pair], family: str) -> None:
    """The average of a model and its scrambled self is the model, bit for bit."""
    paths = pair(family)
    result = merged(paths, expert_alignment="match")
    assert result.keys() == read(paths[0]).keys()
    for name, values in read(paths[0]).items():
        np.testing.assert_array_equal(result[name], values, err_msg=name)


def test_matched_as_paddle_has_them(pair: Callable[..., Pair]) -> None:
    """Matrices [in, out], gate and up in one, and the router [hidden, experts]."""
    paths = pair("ernie4_5_moe", intermediate_size=9)
    expected = merged((paths[0], paths[0]), "alone", output_layout="paddleformers")
    result = merged(paths, expert_alignment="match", output_layout="paddleformers")
    assert result["model.layers.0.mlp.experts.0.up_gate_proj.weight"].shape == (HIDDEN, 2 * NEURONS)
    for name, values in expected.items():
        np.testing.assert_array_equal(result[name], values, err_msg=name)


def test_groups_stay_together(pair: Callable[..., Pair], caplog: pytest.LogCaptureFixture) -> None:
    """With n_group, groups are matched as wholes. A copy that was scrambled across groups can't be put in order."""
    paths = pair(groups=2, n_group=2, topk_group=1)
    result = merged(paths, expert_alignment="match")
    for name, values in read(paths[0]).items():
        np.testing.assert_array_equal(result[name], values, err_msg=name)
    across = pair(groups=1, n_group=2, topk_group=1)
    result = merged(across, "across", expert_alignment="match")
    differing = [name for name, values in read(across[0]).items() if (result[name] != values).any()]
    assert differing
    with np.load(paths[0].parent / "across/expert_alignment.npz") as file:
        orders = [file[name].reshape(2, -1) // (EXPERTS // 2) for name in file.files if name.endswith("experts")]
    assert all((blocks == blocks[:, :1]).all() for blocks in orders)


def test_what_is_near_is_matched(pair: Callable[..., Pair], caplog: pytest.LogCaptureFixture) -> None:
    """Matched, the average of a model and a scrambled neighbour is near it; by index it isn't. Bytes and record are those
    of any number of workers; the orders are found again in the file, and the merge is verified by it."""
    caplog.set_level("INFO")
    paths = pair(noise=0.1, dtype="bfloat16")
    one, two = (merged(paths, f"by {n}", expert_alignment="match", n_process=n) for n in (1, 2))
    assert "experts  2 layers of 4 experts, in the order of" in caplog.text
    assert re.search(r"second: \d of 8 experts in another place, neurons in another order in 8, cosine 0\.99\d", caplog.text)
    by_index = merged(paths, "by index")
    assert "experts  2 layers of 4 experts; expert k is merged with expert k" in caplog.text
    kept = paths[0].parent / "by 1/expert_alignment.npz"
    again = merged(paths, "again", expert_alignment=str(kept))
    for name, values in read(paths[0]).items():
        np.testing.assert_array_equal(one[name], two[name])
        np.testing.assert_array_equal(one[name], again[name])
        if ".experts." in name:
            assert np.abs(one[name] - values).mean() < 0.1 < np.abs(by_index[name] - values).mean()
    assert kept.read_bytes() == (paths[0].parent / "again/expert_alignment.npz").read_bytes()
    assert json.loads((paths[0].parent / "by 1/merge_config.json").read_text())["expert_alignment"] == "match"
    assert verify(str(paths[0].parent / "by 1"), None, 1, tolerant=False, progress=False).off == []


def test_a_dry_run_reads_no_weights(
    pair: Callable[..., Pair], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does a merge that can't be written."""
    monkeypatch.setattr(expert_alignment, "measured", lambda *_: pytest.fail("weights were read"))
    paths = pair()
    settings = {"model_path_list": list(map(str, paths)), "expert_alignment": "match"}
    merge(MergeConfig(**settings, output_path=str(paths[0].parent / "out"), dry_run=True), progress=False)  # type: ignore[arg-type]
    assert "before the merge, their weights are read twice, to match them to those of" in capsys.readouterr().out
    with pytest.raises(MergeError, match="is or holds one of the inputs"):
        merge(MergeConfig(**settings, output_path=str(paths[0])), progress=False)  # type: ignore[arg-type]


def test_the_bases_router(pair: Callable[..., Pair], tmp_path: Path) -> None:
    """Weight, and score correction, bit for bit, whatever the weights of the models; all else is merged."""
    paths = pair(noise=0.5)
    base = write(
        tmp_path / "base", {name: 3 * values for name, values in read(paths[0]).items()}, format="pt", config=config(FAMILY)
    )
    settings = {"base_model_path": str(base), "weight_list": [0.3, 0.9], "normalize": False}
    plain = merged(paths, "plain", **settings)
    result = merged(paths, router="base", **settings)
    routers = {f"model.layers.{n}.mlp.gate.{word}" for n in range(LAYERS) for word in ("weight", "e_score_correction_bias")}
    for name, values in read(base).items():
        expected = values if name in routers else plain[name]
        np.testing.assert_array_equal(result[name], expected, err_msg=name)
        assert (name in routers) == bool((result[name] != plain[name]).any())


def test_in_a_recipe(pair: Callable[..., Pair]) -> None:
    paths = pair()
    text = (
        f"merge_method: task_arithmetic\nbase_model: {paths[0]}\nmodels:\n  - model: {paths[1]}\n"
        "    parameters: {weight: 1}\nexpert_alignment: match\nrouter: base\n"
    )
    out = paths[0].parent / "out"
    merge(MergeConfig(recipe_yaml=text, output_path=str(out)), progress=False)
    for name, values in read(paths[0]).items():
        np.testing.assert_array_equal(read(out)[name], values, err_msg=name)
    record = json.loads((out / "merge_config.json").read_text())
    assert "expert_alignment: match\nrouter: base" in record["recipe_yaml"]
    assert (out / "expert_alignment.npz").exists()
    for words, said in (("router: bas", "router 'bas' must be merge or base; did you mean 'base'?"),):
        with pytest.raises(MergeError, match=re.escape(said)):
            merge(MergeConfig(recipe_yaml=text.replace("router: base", words), output_path=str(out)), progress=False)


def test_what_is_refused(pair: Callable[..., Pair], tmp_path: Path) -> None:
    first, second = paths = pair()
    dense = write(
        tmp_path / "dense", {"model.layers.0.mlp.up_proj.weight": np.ones((4, 6))}, format="pt", config=config("qwen3")
    )
    fewer = {name: values for name, values in read(first).items() if ".experts.3." not in name}
    fewer |= {name: values[:3] for name, values in fewer.items() if ".gate." in name}
    less = write(tmp_path / "less", fewer, format="pt", config=config(FAMILY))
    file = tmp_path / "orders.npz"
    file.write_bytes(b"no archive")
    merged(paths, "other", expert_alignment="match")
    others = str(tmp_path / "other/expert_alignment.npz")
    sliced = "".join(f"      - {{model: {path}, layer_range: [0, 2]}}\n" for path in paths)
    for settings, said in (
        ({"router": "base"}, "router: base keeps the routers of the base model, and there is none"),
        ({"model_path_list": [str(first), str(less)], "expert_alignment": "match"}, "has 3 experts of 5 neurons, and"),
        ({"model_path_list": [str(dense)] * 2, "expert_alignment": "match"}, "has no mixture of experts"),
        (
            {"model_path_list": [str(first), str(dense)], "expert_alignment": "match"},
            "dense: has no experts in model.layers.0.mlp (and 1 more), and",
        ),
        ({"model_path_list": [str(dense)], "base_model_path": str(dense), "router": "base"}, "has no mixture of experts"),
        ({"expert_alignment": str(file)}, "isn't a file of expert orders that an earlier merge"),
        ({"expert_alignment": str(tmp_path / "macth")}, "is neither index nor match, and no file; did you mean 'match'?"),
        ({"model_path_list": [str(second), str(first)], "expert_alignment": others}, "is of other inputs"),
        (
            {
                "model_path_list": None,
                "expert_alignment": "match",
                "recipe_yaml": f"merge_method: linear\nparameters: {{weight: 1}}\nslices:\n  - sources:\n{sliced}",
            },
            "expert_alignment: match is for whole models, layer by layer; with slices, leave it out",
        ),
        (
            {
                "model_path_list": None,
                "router": "base",
                "recipe_yaml": f"merge_method: linear\nbase_model: {first}\nparameters: {{weight: 1}}\nslices:\n"
                f"  - sources:\n{sliced}",
            },
            "router: base is for whole models, layer by layer; with slices, leave it out",
        ),
    ):
        with pytest.raises(CheckpointError, match=re.escape(said)) as found:
            merged(paths, **settings)
        assert str(found.value).count("--expert_alignment") <= 1


def test_experts_that_hardly_resemble_one_another(
    pair: Callable[..., Pair], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expert_alignment, "ALIKE", 1.01)
    merged(pair(), expert_alignment="match")
    assert "hardly resemble those of" in caplog.text
    assert "even matched (cosine 1.000)" in caplog.text


def test_adapters_are_folded_in_before_experts_are_matched(pair: Callable[..., Pair]) -> None:
    """A scrambled model with an adapter merges as the same model with the adapter folded."""
    first, second = pair(noise=0.2)
    name = "model.layers.1.mlp.experts.2.down_proj"
    adapter = lora(second.parent / "lora", {name: (HIDDEN, NEURONS, 2)}, seed=1)
    folded = second.parent / "folded"
    merge(MergeConfig(lora_model_path=adapter, base_model_path=str(second), output_path=str(folded)), progress=False)
    assert (read(folded)[f"{name}.weight"] != read(second)[f"{name}.weight"]).any()
    expected = merged((first, folded), "expected", expert_alignment="match")
    result = merged((first, second), model_path_list=[str(first), f"{second}+{adapter}"], expert_alignment="match")
    for key, values in expected.items():
        np.testing.assert_allclose(result[key], values, rtol=1e-6, atol=1e-6, err_msg=key)


def test_a_merge_is_resumed_in_the_same_order(pair: Callable[..., Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    """And not if another order is measured, as another library for matrices might."""
    paths = pair(noise=0.1)
    models, out = list(map(str, paths)), paths[0].parent / "out"
    expected = merged(paths, "expected", expert_alignment="match")
    monkeypatch.setattr(journal, "SECONDS", 0.0)
    right, done = Worker.merge, list[str]()

    def merge_few(self: Worker, tensor: TensorPlan, piece: Piece) -> Report:
        done.append(tensor.name)
        if len(done) > 9:
            raise OutputError("the disk is gone")
        return right(self, tensor, piece)

    settings = {"model_path_list": models, "output_path": str(out), "expert_alignment": "match", "n_process": 1}
    with monkeypatch.context() as patch:
        patch.setattr(Worker, "merge", merge_few)
        with pytest.raises(OutputError, match="the disk is gone"):
            merge(MergeConfig(**settings), progress=False)  # type: ignore[arg-type]
    measured = expert_alignment.measured

    def otherwise(*given: Any) -> Orders:
        orders = measured(*given)
        for order in orders.by_input[1].values():
            order.neurons[0] = order.neurons[0][::-1].copy()
        return orders

    with monkeypatch.context() as patch:
        patch.setattr(expert_alignment, "measured", otherwise)
        with pytest.raises(OutputError, match=r"--resume can't continue .*: its experts match in another order now"):
            merge(MergeConfig(**settings, resume=True), progress=False)  # type: ignore[arg-type]
    merge(MergeConfig(**settings, resume=True), progress=False)  # type: ignore[arg-type]
    for name, values in expected.items():
        np.testing.assert_array_equal(read(out)[name], values, err_msg=name)
