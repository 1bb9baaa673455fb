"""Test outputs with fewer experts and layers; the expected numbers are worked out by hand, or follow from laws."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_merge import CheckpointError, ConfigError, MergeConfig, merge
from paddle_merge.backends.engine import NUMPY
from paddle_merge.checkpoints.expert_statistics import ExpertStatistics, LayerStatistics
from paddle_merge.plan.account import account
from paddle_merge.plan.planner import make_plan
from paddle_merge.recipe.request import Request
from paddle_merge.run.merge import prepare
from paddle_merge.run.state_dicts import merge_by_recipe
from tests.support import mixtures
from tests.support.checkpoints import read, write
from tests.support.mixtures import model
from tests.support.sweeps import few


def recipe(folder: str, method: str = "passthrough", **keys: Any) -> str:
    return json.dumps({"merge_method": method, "models": [{"model": folder}], **keys}) + "\n"


def made(out: Path, text: str, **fields: Any) -> dict[str, np.ndarray]:
    merge(MergeConfig(recipe_yaml=text, output_path=str(out), **fields), progress=False)
    return read(out)


def stored(out: Path) -> bytes:
    return (out / "model.safetensors").read_bytes()


def config_of(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "config.json").read_text()))


def refused(text: str, **fields: Any) -> str:
    with pytest.raises((CheckpointError, ConfigError)) as found:
        prepare(Request.of(MergeConfig(recipe_yaml=text, output_path="nowhere", **fields)))
    return "\n".join(found.value.problems)


ROUTER = [[1.0, 0.0], [0.0, 4.0], [-3.0, 0.0], [2.0, 0.1]]


def hand(folder: Path, stacked: bool) -> str:
    """Layer 0 has four experts of one neuron; expert n has [[n, n + 0.5]] as up_proj, and [[n], [-n]] as down_proj."""
    at, made = "model.layers.0.mlp.", dict[str, np.ndarray]()
    up, down = ([np.array(one(float(n))) for n in range(4)] for one in (lambda n: [[n, n + 0.5]], lambda n: [[n], [-n]]))
    for word, each in (("up_proj", up), ("down_proj", down)):
        if stacked:
            made[f"{at}experts.{word}"] = np.stack(each)
        else:
            made |= {f"{at}experts.{number}.{word}.weight": one for number, one in enumerate(each)}
    made |= {f"{at}gate.weight": np.array(ROUTER), f"{at}gate.e_score_correction_bias": np.arange(4.0)}
    said = {"num_hidden_layers": 1, "hidden_size": 2, "num_experts": 4, "num_experts_per_tok": 2}
    return str(write(folder, made, format="pt", config=said))


def experts_in(found: dict[str, np.ndarray]) -> list[list[float]]:
    """Return what the up_proj of each expert is; down_proj must be of the same expert."""
    at, count = "model.layers.0.mlp.experts", len(found["model.layers.0.mlp.gate.weight"])
    if f"{at}.up_proj" in found:
        ups, downs = found[f"{at}.up_proj"], found[f"{at}.down_proj"]
    else:
        ups, downs = (np.stack([found[f"{at}.{n}.{word}_proj.weight"] for n in range(count)]) for word in ("up", "down"))
    assert len(ups) == len(downs) == count
    assert downs[:, 0, 0].tolist() == (-downs[:, 1, 0]).tolist() == ups[:, 0, 0].tolist()
    return [list(one[0]) for one in ups]


@pytest.mark.parametrize("stacked", [False, True])
def test_by_hand(stacked: bool, tmp_path: Path) -> None:
    folder = hand(tmp_path / "a", stacked)
    found = made(tmp_path / "two", recipe(folder, keep_experts=[0, 2]))
    assert experts_in(found) == [[0, 0.5], [2, 2.5]]
    assert found["model.layers.0.mlp.gate.weight"].tolist() == [ROUTER[0], ROUTER[2]]
    assert found["model.layers.0.mlp.gate.e_score_correction_bias"].tolist() == [0, 2]
    assert config_of(tmp_path / "two")["num_experts"] == 2
    # Expert 1 becomes 0.75 * expert 1 + 0.25 * expert 3, weights 3 and 1 divided by 4; it keeps its row of the router.
    found = made(tmp_path / "groups", recipe(folder, keep_experts={"0": [{"1": 3, "3": 1}, 0]}))
    assert experts_in(found) == [[1.5, 2.0], [0, 0.5]]
    assert found["model.layers.0.mlp.gate.weight"].tolist() == [ROUTER[1], ROUTER[0]]


def statistics(path: Path, **lists: list[float]) -> str:
    zeros = {name: [0.0] * 4 for name in ("count", "gate", "norm", "gated_norm")}
    content = {"format": "paddle_merge expert statistics", "version": 1, "layers": {"0": {**zeros, **lists}}}
    path.write_text(json.dumps(content))
    return str(path)


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("reap", [0, 2]),  # means of gate * norm: 6 / 2, 2 / 8, 8 / 4, and 0 of the expert that is sent none
        ("output_norm", [1, 2]),  # means of norm: 4 / 2, 40 / 8, 16 / 4, 0
        ("frequency", [1, 2]),  # 2, 8, 4, 0
        ("router_norm", [1, 2]),  # 1, 4, 3, 2.0025
    ],
)
def test_scores(by: str, expected: list[int], tmp_path: Path) -> None:
    folder = hand(tmp_path / "a", stacked=False)
    file = statistics(tmp_path / "s.json", count=[2, 8, 4, 0], norm=[4, 40, 16, 0], gated_norm=[6, 2, 8, 0])
    keep = {"count": 2, "by": by} | ({} if by == "router_norm" else {"statistics": file})
    found = made(tmp_path / "out", recipe(folder, keep_experts=keep))
    assert experts_in(found) == [[n, n + 0.5] for n in expected]
    # The record lists what was chosen: the merge repeats without the file.
    (tmp_path / "s.json").unlink()
    record = json.loads((tmp_path / "out" / "merge_config.json").read_text())["recipe_yaml"]
    made(tmp_path / "again", record)
    assert stored(tmp_path / "again") == stored(tmp_path / "out")


def test_merged_into_the_most_similar(tmp_path: Path) -> None:
    """Of the router's rows, 3 is nearly parallel to 0, 1 orthogonal, and 2 opposite. So with centres 1, 2 and 3, the most
    frequent ones, 0 joins 3, with weights 2 and 6 of 8: 0.25 * [0, 0.5] + 0.75 * [3, 3.5] = [2.25, 2.75]."""
    folder = hand(tmp_path / "a", stacked=False)
    file = statistics(tmp_path / "s.json", count=[2, 8, 4, 6])
    keep = {"count": 3, "by": "frequency", "statistics": file, "merge": True}
    found = made(tmp_path / "out", recipe(folder, keep_experts=keep))
    assert experts_in(found) == [[1, 1.5], [2, 2.5], [2.25, 2.75]]
    np.testing.assert_array_equal(found["model.layers.0.mlp.gate.weight"], np.array(ROUTER[1:], np.float32))


@pytest.mark.parametrize("stacked", few([True, False]))
@pytest.mark.parametrize("experts", few([[{"2": 0.75, "0": 0.25}, 1], [3, 1]]))
def test_first_merged_then_dropped(stacked: bool, experts: list[Any], tmp_path: Path) -> None:
    """One recipe gives the bytes that two merges give, random masks included, with any number of workers."""
    folders = [model(tmp_path / name, seed, stacked=stacked) for seed, name in enumerate("abc")]
    models = [{"model": folder, "parameters": {"weight": 0.5, "density": 0.6}} for folder in folders[1:]]
    both = {"merge_method": "dare_ties", "base_model": folders[0], "models": models, "seed": 3, "out_dtype": "bfloat16"}
    drop = {"keep_experts": dict.fromkeys(range(3), experts), "drop_layers": [1]}
    made(tmp_path / "merged", json.dumps(both) + "\n")
    made(tmp_path / "two", recipe(str(tmp_path / "merged"), **drop))
    made(tmp_path / "one", json.dumps({**both, **drop}) + "\n", n_process=2)
    assert stored(tmp_path / "one") == stored(tmp_path / "two")


def test_in_paddles_layout(tmp_path: Path) -> None:
    """Routers have a column for each expert there: a model that is converted, pruned and converted back is pruned."""
    folder, keep = model(tmp_path / "a"), [3, 0]
    made(tmp_path / "hf", recipe(folder, keep_experts=keep))
    made(tmp_path / "paddle", recipe(folder), output_layout="paddleformers")
    found = made(tmp_path / "small", recipe(str(tmp_path / "paddle"), keep_experts=keep))
    assert found["model.layers.0.mlp.gate.weight"].shape == (mixtures.HIDDEN, 2)
    made(tmp_path / "back", recipe(str(tmp_path / "small")), output_layout="hf")
    before, after = read(tmp_path / "hf"), read(tmp_path / "back")
    assert after.keys() - before.keys() == {"lm_head.weight"}  # which Paddle stores, though it is tied
    assert all((before[name] == after[name]).all() for name in before)


def test_experts_that_were_matched_first(tmp_path: Path) -> None:
    """The second model is the first with its experts in another order, so their average is the first. Its router's rows are
    compared in the first one's order, too: the longest are kept."""
    whole = mixtures.tensors(0)
    order = [2, 0, 3, 1]
    other = dict(whole)
    for number in range(4):
        for name in whole:
            if f".experts.{order[number]}." in name:
                other[name.replace(f".experts.{order[number]}.", f".experts.{number}.")] = whole[name]
    for name in whole:
        if ".mlp.gate." in name:
            other[name] = whole[name][order]
    said = {"num_hidden_layers": 3, "num_experts": 4, "hidden_size": mixtures.HIDDEN}
    folders = [str(write(tmp_path / name, its, format="pt", config=said)) for name, its in (("a", whole), ("b", other))]
    models = [{"model": folder, "parameters": {"weight": 0.5}} for folder in folders]
    text = {"merge_method": "linear", "models": models, "expert_alignment": "match"}
    found = made(tmp_path / "out", json.dumps({**text, "keep_experts": {"count": 2, "by": "router_norm"}}) + "\n")
    for layer in range(3):
        rows = whole[f"model.layers.{layer}.mlp.gate.weight"].astype(np.float32)
        kept = sorted(np.argsort(-np.linalg.norm(rows.astype(np.float64), axis=1))[:2])
        np.testing.assert_array_equal(found[f"model.layers.{layer}.mlp.gate.weight"], rows[kept])
        for place, expert in enumerate(kept):
            at, name = f"model.layers.{layer}.mlp.experts.", "down_proj.weight"
            np.testing.assert_array_equal(found[f"{at}{place}.{name}"], whole[f"{at}{expert}.{name}"].astype(np.float32))


def test_all_experts_are_the_same_bytes(tmp_path: Path) -> None:
    folder = model(tmp_path / "a", dtype="bfloat16")
    made(tmp_path / "out", recipe(folder, keep_experts=[0, 1, 2, 3]))
    assert read(tmp_path / "out").keys() == read(tmp_path / "a").keys()
    before, after = read(tmp_path / "a"), read(tmp_path / "out")
    assert all((before[name] == after[name]).all() for name in before)


def test_experts_that_the_router_never_chooses(tmp_path: Path) -> None:
    """Without them, the mixture is the same function, computed in NumPy."""
    whole = mixtures.tensors(0, experts=6, layers=1)
    x = np.abs(np.random.default_rng(1).normal(size=(20, mixtures.HIDDEN)))
    router = whole["model.layers.0.mlp.gate.weight"]
    router[[1, 4]] = -np.abs(router[[1, 4]]) - 5  # so that their logits are the smallest for positive x
    said = {"num_hidden_layers": 1, "num_experts": 6}
    write(tmp_path / "a", whole, "float64", format="pt", config=said)
    found = made(tmp_path / "out", recipe(str(tmp_path / "a"), keep_experts=[0, 2, 3, 5]))
    before, chosen, *_ = mixtures.mixture(whole, "model.layers.0.mlp.", x, 2)
    assert {*map(int, chosen.flat)} <= {0, 2, 3, 5}
    after = mixtures.mixture(found, "model.layers.0.mlp.", x, 2)[0]
    np.testing.assert_array_equal(after, before)


def test_dropped_layers_are_slices(tmp_path: Path) -> None:
    folder = model(tmp_path / "a", layers=4, dense=(0,))
    made(tmp_path / "out", recipe(folder, drop_layers=[2]))
    parts = [{"sources": [{"model": folder, "layer_range": its}]} for its in ([0, 2], [3, 4])]
    made(tmp_path / "slices", json.dumps({"merge_method": "passthrough", "slices": parts}) + "\n")
    assert stored(tmp_path / "out") == stored(tmp_path / "slices")
    assert config_of(tmp_path / "out") == config_of(tmp_path / "slices")
    assert config_of(tmp_path / "out")["num_hidden_layers"] == 3
    assert config_of(tmp_path / "out")["mlp_only_layers"] == [0]


def test_experts_of_dropped_layers_need_not_be_chosen(tmp_path: Path) -> None:
    said = {"num_nextn_predict_layers": 1, "num_hidden_layers": 1}
    folder = model(tmp_path / "a", layers=2, config=said)
    keep = {"count": 2, "by": "frequency", "statistics": statistics(tmp_path / "s.json", count=[1, 2, 3, 4])}
    assert "has no layer 1, whose experts are to be chosen" in refused(recipe(folder, keep_experts=keep))
    found = made(tmp_path / "out", recipe(folder, keep_experts=keep, drop_layers=[1]))
    assert found["model.layers.0.mlp.gate.e_score_correction_bias"].shape == (2,)
    assert not [name for name in found if ".layers.1." in name]
    told = config_of(tmp_path / "out")
    assert (told["num_hidden_layers"], told["num_nextn_predict_layers"], told["num_experts"]) == (1, 0, 2)


def test_what_groups_of_experts_are_read_for(tmp_path: Path) -> None:
    """Every expert of both models is read, though the output has two: the plan says so, and nothing of tokens."""
    models = [{"model": model(tmp_path / str(seed), seed)} for seed in range(2)]
    keep = [{"0": 0.5, "2": 0.5}, {"1": 0.5, "3": 0.5}]
    text = json.dumps({"merge_method": "linear", "parameters": {"weight": 1}, "models": models, "keep_experts": keep})
    plan = make_plan(Request.of(MergeConfig(recipe_yaml=text + "\n", output_path="nowhere")).checked_recipe())
    whole = sum(4 * values.size for one in models for values in read(Path(one["model"])).values())
    unread = 2 * 3 * 2 * 4 * (mixtures.HIDDEN + 1)  # of routers and their biases, the rows of experts that aren't kept
    assert plan.bytes_in == whole - unread
    assert not [note for one in account(plan).made for note in one.notes if "token" in note]


def test_statistics_of_layers_with_other_numbers(tmp_path: Path) -> None:
    """A model whose slices leave layer 0 out is not what was measured: its layer 0 was layer 1."""
    folder, file = model(tmp_path / "a", layers=2), tmp_path / "s.json"
    layers = {number: LayerStatistics(*[[1, 2, 3, 4]] * 4) for number in range(2)}
    file.write_text(ExpertStatistics("a", "p", 9, layers).to_json())
    keep = {"count": 2, "by": "frequency", "statistics": str(file)}
    parts = [{"sources": [{"model": folder, "layer_range": [1, 2]}]}]
    said = refused(json.dumps({"merge_method": "passthrough", "slices": parts, "keep_experts": keep}) + "\n")
    assert "has layer 1, which has no experts in the merged model" in said


def test_layers_that_predict_further_tokens_are_counted_apart(tmp_path: Path) -> None:
    said = {"num_nextn_predict_layers": 1, "num_hidden_layers": 2, "first_k_dense_replace": 1, "mlp_only_layers": []}
    folder = model(tmp_path / "a", layers=3, dense=(0,), config=said)
    made(tmp_path / "out", recipe(folder, drop_layers=[1]))
    found = config_of(tmp_path / "out")
    assert (found["num_hidden_layers"], found["num_nextn_predict_layers"], found["first_k_dense_replace"]) == (1, 1, 1)


@pytest.mark.parametrize("stacked", [False, True])
def test_account(stacked: bool, tmp_path: Path) -> None:
    """Every tensor is used, or left out for a reason that names the key; and no element is lost."""
    folder = model(tmp_path / "a", stacked=stacked)
    text = recipe(folder, keep_experts=[0, 2], drop_layers=[1])
    found = account(make_plan(Request.of(MergeConfig(recipe_yaml=text)).checked_recipe()))
    (one,) = found.inputs
    why = {fate.name: fate.why for fate in one.left_out}
    layer = [name for name in one.tensors if ".layers.1." in name]
    assert {name for name, reason in why.items() if reason == "drop_layers leaves this layer out"} >= {
        name for name in layer if ".experts." not in name
    }
    dropped = {name for name, reason in why.items() if reason == "keep_experts leaves this expert out"}
    assert {name.split(".experts.")[1][0] for name in dropped} == (set() if stacked else {"1", "3"})
    assert len(found.made) + len(why) == len(one.tensors)
    routers = [made.how for made in found.made if made.name.endswith("gate.weight")]
    assert routers == ["2 of 4 experts"] * 2
    assert found.plan.smaller == (
        "2 of 4 experts are kept in each of 2 layers; the others are dropped",
        "layer 1 is dropped",
    )


@pytest.mark.parametrize(
    ("keys", "config", "sentence"),
    [
        ({"keep_experts": [0, 4]}, {}, "names expert 4, and layer 0 has 0 to 3"),
        ({"keep_experts": {"0": [0], "1": [1, 2]}}, {}, "says nothing of layer 2"),
        ({"keep_experts": {"0": [0], "1": [1, 2], "2": [0]}}, {}, "keeps 1 experts of layer 0 and 2 of layer 1"),
        ({"keep_experts": {"7": [0]}}, {}, "says something of layer 7, which has no experts"),
        ({"keep_experts": [0]}, {"num_experts_per_tok": 2}, "must keep at least 2"),
        ({"keep_experts": [0, 1]}, {"n_group": 2, "topk_group": 1}, "as many of each, in order: of layer 0 it keeps [2, 0]"),
        ({"keep_experts": [0, 2]}, {"n_group": 2, "topk_group": 1}, "must keep a multiple of 2, at least 4"),
        (
            {"keep_experts": {"count": 3, "by": "router_norm"}},
            {"n_group": 2, "topk_group": 1},
            "count 3 must be divisible by 2",
        ),
        ({"keep_experts": {"count": 5, "by": "router_norm"}}, {}, "count 5 is more than the 4 experts of layer 0"),
        ({"keep_experts": {"count": 2, "by": "reap", "statistics": "gone.json"}}, {}, "gone.json: can't be read"),
        ({"keep_experts": [0]}, {"num_experts": 8}, "config.json must give the number of experts, 4"),
        ({"drop_layers": [3]}, {}, "has layers 0 to 2, and no layer 3"),
        ({"drop_layers": [0, 1, 2]}, {}, "drops all 3 layers"),
    ],
)
def test_refused(keys: Any, config: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    assert sentence in refused(recipe(model(tmp_path / "a", config=config), **keys))


def test_layers_whose_kind_follows_from_their_number(tmp_path: Path) -> None:
    """Every second layer has experts: after one layer is dropped, others would have to; after two neighbours are, none."""
    folder = model(tmp_path / "a", layers=4, dense=(0, 2), config={"decoder_sparse_step": 2, "mlp_only_layers": []})
    assert "by mlp_only_layers [], decoder_sparse_step 2, layer 0 of the output would not have experts" in refused(
        recipe(folder, drop_layers=[0])
    )
    found = made(tmp_path / "out", recipe(folder, drop_layers=[0, 1]))
    assert "model.layers.1.mlp.gate.weight" in found
    assert "model.layers.0.mlp.gate_proj.weight" in found


def test_a_model_without_experts(tmp_path: Path) -> None:
    assert "has no experts" in refused(recipe(model(tmp_path / "a", dense=(0, 1, 2)), keep_experts=[0]))


def test_state_dicts_keep_all(tmp_path: Path) -> None:
    record = Request.of(MergeConfig(recipe_yaml=recipe(model(tmp_path / "a"), keep_experts=[0]))).checked_recipe()
    with pytest.raises(ConfigError, match="need checkpoints: save the state dicts"):
        merge_by_recipe([mixtures.tensors(0)], record, NUMPY)


def test_the_card_says_what_is_kept_and_repeats_it(tmp_path: Path) -> None:
    keep = {"count": 2, "by": "router_norm", "merge": True}
    made(tmp_path / "out", recipe(hand(tmp_path / "a", stacked=False), keep_experts=keep))
    card = (tmp_path / "out" / "README.md").read_text()
    assert (
        "Of the merged model, 2 of 4 experts are kept in the layer that has some, chosen by router_norm; others are" in card
    )
    text = card.partition("```yaml\n")[2].partition("```")[0].replace("model: ./a", f"model: {tmp_path / 'a'}")
    made(tmp_path / "again", text)
    assert stored(tmp_path / "again") == stored(tmp_path / "out")


def test_where_keys_belong() -> None:
    keys = {"drop_layers": [0], "keep_experts": [0], "expert_alignment": "match", "router": "base"}
    stage = {"name": "one", "merge_method": "passthrough", "models": [{"model": "a"}], **keys}
    said = refused(f"{json.dumps(stage)}\n---\n{recipe('one')}")
    mixture = {"base_model": "a", "gate_mode": "random", "experts": [{"source_model": "a"}, {"source_model": "b"}], **keys}
    others = refused(json.dumps(mixture) + "\n")
    for key in keys:
        assert f"{key!r} belongs into the last merge" in said
        assert f"unknown key {key!r}" in others
    assert "by reap needs statistics" in refused(recipe("a", keep_experts={"count": 2, "by": "reap"}))
    assert "'rep' is no score; did you mean 'reap'?" in refused(recipe("a", keep_experts={"count": 2, "by": "rep"}))
    assert "must be a list of experts" in refused(recipe("a", keep_experts=2))
    assert "expert 1 stands twice" in refused(recipe("a", keep_experts=[1, 1]))
