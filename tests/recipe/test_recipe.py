"""Test mergekit's recipes: their meaning, tensor by tensor, and the error messages for mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from paddle_merge import CheckpointError, ConfigError, MergeConfig, merge, merge_state_dicts
from paddle_merge.backends.engine import import_paddle
from paddle_merge.commands.main import main
from paddle_merge.commands.verify.verify import verify
from paddle_merge.methods.paddlenlp import METHODS
from paddle_merge.methods.registry import NAMED, find
from paddle_merge.methods.shared.method import Parameter
from paddle_merge.recipe.parameters import Resolver, matches, typed
from paddle_merge.recipe.recipe import Condition, Recipe, constant
from paddle_merge.recipe.request import Request
from paddle_merge.recipe.yaml_read import parse
from paddle_merge.recipe.yaml_write import to_yaml
from paddle_merge.run.state_dicts import merge_by_recipe
from tests.support.checkpoints import read, write
from tests.support.recipes import made, mistakes, model, models, q, up
from tests.support.sweeps import few

LINEAR = "models: [{model: a}, {model: b}]\nmerge_method: linear\nparameters: {weight: 1}"


# --- what a parameter is -----------------------------------------------------------------------------------------------


def test_gradients_and_filters_by_hand(here: Path) -> None:
    """t = layer / (layers - 1); 0 for tensors in no layer, as in mergekit. [0, 1] over 4 layers: 0, 1/3, 2/3, 1."""
    recipe = parse(
        """
models: [{model: a}, {model: b, parameters: {weight: [0, 1]}}]
merge_method: linear
parameters:
  weight: [{filter: mlp, value: 5}, {filter: 're:^lm_', value: [2, 8]}, {value: 3}]
""",
        "r",
    ).recipe
    resolver = Resolver(recipe)

    def weights(name: str, t: float) -> Any:
        return resolver.values(recipe.slices[0], name, t)["weight"]

    assert weights(q(0), 0.0) == (3.0, 0.0)
    assert weights(up(1), 1 / 3) == (5.0, pytest.approx(1 / 3))
    assert weights(up(3), 1.0) == (5.0, 1.0)
    assert weights("lm_head.weight", 0.0) == (2.0, 0.0)


@pytest.mark.parametrize(
    ("values", "t", "expected"),
    [
        ((1.0,), 0.7, 1.0),
        ((0.0, 10.0), 0.25, 2.5),
        ((0.0, 1.0, 0.0), 0.25, 0.5),
        ((0.0, 1.0, 0.0), 0.5, 1.0),
        ((0.0, 1.0, 0.0), 1.0, 0.0),
        ((3.0, 7.0, 1.0, 5.0), 0.5, 4.0),
    ],
)
def test_where_a_gradient_stands(values: tuple[float, ...], t: float, expected: float) -> None:
    parameter = Parameter("t", float)
    method = find("slerp")
    assert method is not None
    recipe = Recipe((), None, method, (), {"t": (Condition(values),)})
    from paddle_merge.recipe.recipe import Slice

    assert Resolver(recipe).values(Slice(()), "w", t) == {"t": pytest.approx(expected)}
    assert typed("1e-5", parameter) == 1e-5


def test_what_a_filter_matches() -> None:
    assert matches(None, "x")
    assert matches("*", "x")
    assert matches("attn", q(1))
    assert not matches("ATTN", q(1))
    assert not matches("q.*proj", q(1))
    assert matches("re:q.*proj", q(1))
    assert matches(r"re:layers\.[12]\.", q(1))
    assert not matches(r"re:layers\.[12]\.", q(3))


def test_the_most_particular_setting_counts(here: Path) -> None:
    """A model's own, then the slice's, then the recipe's; where a filter doesn't match, the next."""
    text = """
slices:
  - sources:
      - {model: a, layer_range: [0, 2], parameters: {weight: [{filter: mlp, value: 1}]}}
      - {model: b, layer_range: [0, 2]}
    parameters: {weight: 2}
  - sources:
      - {model: a, layer_range: [2, 4]}
      - {model: b, layer_range: [2, 4], parameters: {weight: 7}}
merge_method: linear
parameters: {weight: 4, normalize: false}
"""
    a, b = models("a", "b")
    out = made(text)
    np.testing.assert_allclose(out[up(0)], a[up(0)] + 2 * b[up(0)], rtol=1e-6)
    np.testing.assert_allclose(out[q(1)], 2 * a[q(1)] + 2 * b[q(1)], rtol=1e-6)
    np.testing.assert_allclose(out[q(3)], 4 * a[q(3)] + 7 * b[q(3)], rtol=1e-6)
    embedding, head = "model.embed_tokens.weight", "lm_head.weight"
    np.testing.assert_allclose(out[embedding], 2 * a[embedding] + 2 * b[embedding], rtol=1e-6)  # of the first slice
    np.testing.assert_allclose(out[head], 4 * a[head] + 7 * b[head], rtol=1e-6)  # of the last


def test_a_filter_that_matches_nothing_is_reported(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    made(
        "models: [{model: a}, {model: b}]\nmerge_method: linear\nparameters: {weight: [{filter: atn, value: 2}, {value: 1}]}"
    )
    assert "parameter 'weight': the filter 'atn' applies to no tensor" in caplog.text


def test_a_dry_run_shows_what_each_tensor_gets(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parameters = "{t: [{filter: mlp, value: [0, 0.3]}, {value: 0.5}]}"
    text = f"models: [{{model: a}}, {{model: b}}]\nmerge_method: slerp\nbase_model: a\nparameters: {parameters}\n"
    merge(MergeConfig(recipe_yaml=text, output_path="out", dry_run=True, account="account.json"), progress=False)
    said = capsys.readouterr().out
    assert "with t 0, 0.1, 0.2, 0.3\n" in said
    assert "with t 0.5\n" in said
    tensors = {row["name"]: row["parameters"] for row in json.loads(Path("account.json").read_text())["tensors"]}
    assert tensors[up(2)] == {"t": pytest.approx(0.2)}
    assert tensors[q(3)] == {"t": 0.5}
    assert not Path("out").exists()


# --- slices ------------------------------------------------------------------------------------------------------------


def test_layers_are_stacked_and_renumbered(here: Path) -> None:
    text = """
slices:
  - sources: [{model: a, layer_range: [0, 3]}]
  - sources: [{model: b, layer_range: [1, 4]}]
merge_method: passthrough
"""
    a, b = models("a", "b")
    out = made(text)
    came_from = [(a, 0), (a, 1), (a, 2), (b, 1), (b, 2), (b, 3)]
    expected = {f(number): source[f(its)] for number, (source, its) in enumerate(came_from) for f in (q, up)}
    expected |= {"model.embed_tokens.weight": a["model.embed_tokens.weight"]}
    expected |= {name: b[name] for name in ("model.norm.weight", "lm_head.weight")}
    assert out.keys() == expected.keys()
    assert all((out[name] == expected[name]).all() for name in out)
    assert json.loads(Path("out/config.json").read_text())["num_hidden_layers"] == 6
    assert verify("out", None, 1, False, progress=False).off == []


@pytest.mark.parametrize("base", ["", "base_model: a\n"])
def test_slices_of_no_layers_give_what_comes_before_and_behind(here: Path, base: str) -> None:
    """All layers are b's, and everything else is a's."""
    text = f"""
{base}slices:
  - sources: [{{model: a, layer_range: [0, 0]}}]
  - sources: [{{model: b, layer_range: [3, 4]}}]
  - sources: [{{model: b, layer_range: [1, 2], parameters: {{scale: [{{filter: up_proj, value: 2}}]}}}}]
  - sources: [{{model: a, layer_range: [0, 0]}}]
merge_method: passthrough
"""
    a, b = models("a", "b")
    out = made(text)
    outside = [name for name in a if "layers" not in name]
    expected = {name: a[name] for name in outside} | {q(0): b[q(3)], up(0): b[up(3)], q(1): b[q(1)]}
    assert out.keys() == {*expected, up(1)}
    assert all((out[name] == expected[name]).all() for name in expected)
    assert (out[up(1)].astype(np.float32) == 2 * b[up(1)].astype(np.float32)).all()
    assert json.loads(Path("out/config.json").read_text())["num_hidden_layers"] == 2
    assert verify("out", None, 1, False, progress=False).off == []
    assert to_yaml(parse(to_yaml(parse(text, "r").recipe), "r").recipe) == to_yaml(parse(text, "r").recipe)


def test_slices_of_no_layers_of_an_earlier_merge(here: Path) -> None:
    text = """
name: both
models: [{model: a}, {model: b}]
merge_method: linear
parameters: {weight: 1}
---
slices:
  - sources: [{model: both, layer_range: [0, 0]}]
  - sources: [{model: b, layer_range: [2, 3]}]
  - sources: [{model: both, layer_range: [2, 3]}]
merge_method: passthrough
"""
    whole, out, (b,) = made(LINEAR, out="whole"), made(text), models("b")
    for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
        assert (out[name] == whole[name]).all()
    assert (out[q(0)] == b[q(2)]).all()
    assert (out[q(1)] == whole[q(2)]).all()


def test_what_no_slice_takes_is_accounted_for(here: Path) -> None:
    text = "slices: [{sources: [{model: deep, layer_range: [1, 3]}]}]\nmerge_method: passthrough"
    made(text, account="account.json")
    (one,) = json.loads(Path("account.json").read_text())["inputs"]
    left_out = {row["name"]: row["left_out"] for row in one["each"] if "left_out" in row}
    assert left_out == dict.fromkeys([f(number) for f in (q, up) for number in (0, 3, 4, 5)], "no slice takes it")


def test_slices_of_two_models_of_different_depth(here: Path) -> None:
    text = """
slices:
  - sources: [{model: deep, layer_range: [2, 4]}, {model: a, layer_range: [0, 2]}]
merge_method: slerp
base_model: a
parameters: {t: [0, 1]}
"""
    a, deep = models("a", "deep")
    out = made(text)
    assert (out[q(0)] == a[q(0)].astype(np.float32)).all()
    assert (out[q(1)] == deep[q(3)].astype(np.float32)).all()


@pytest.mark.parametrize("scale", ["scale: 0", "scale: [{filter: q_proj, value: 0}, {value: 1}]"])
def test_passthrough_scales(here: Path, scale: str) -> None:
    """LLaMA-Pro's new blocks: copies whose last projections are zero."""
    out = made(
        f"slices: [{{sources: [{{model: a, layer_range: [0, 1], parameters: {{{scale}}}}}]}}]\nmerge_method: passthrough"
    )
    (a,) = models("a")
    assert (out[q(0)] == 0).all()
    assert (out[up(0)] == (0 if scale == "scale: 0" else a[up(0)].astype(np.float32))).all()


@pytest.mark.parametrize(
    ("layer_range", "words"),
    [("[0, 9]", "has no layer 4 of model.layers; it has 4, counted from 0"), ("[7, 8]", "has no layer 7 of model.layers")],
)
def test_layers_that_are_not_there(here: Path, layer_range: str, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        made(f"slices: [{{sources: [{{model: a, layer_range: {layer_range}}}]}}]\nmerge_method: passthrough")


def test_a_model_whose_layers_have_other_names_has_none_of_them(here: Path) -> None:
    write(here / "gpt", {name.replace("model.layers", "transformer.h"): value for name, value in read(here / "a").items()})
    slices = ", ".join(f"{{sources: [{{model: {name}, layer_range: [0, 1]}}]}}" for name in ("a", "gpt"))
    with pytest.raises(CheckpointError, match=r"gpt: has no layer 0 of model\.layers$"):
        made(f"slices: [{slices}]\nmerge_method: passthrough")


# --- methods -----------------------------------------------------------------------------------------------------------


def test_linear_and_task_arithmetic(here: Path) -> None:
    a, b, c = models("a", "b", "c")
    weights = "[{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 3}}]"
    out = made(f"models: {weights}\nmerge_method: linear", "o1")
    for name in out:
        np.testing.assert_allclose(out[name], (a[name] + 3 * b[name]) / 4, rtol=1e-6)
    out = made(f"models: {weights}\nmerge_method: task_arithmetic\nbase_model: c\nparameters: {{lambda: 0.5}}", "o2")
    for name in out:
        np.testing.assert_allclose(
            out[name], c[name] + 0.5 * (a[name] - c[name] + 3 * (b[name] - c[name])), rtol=2e-5, atol=1e-6
        )


def test_a_base_among_the_models_of_linear_is_one_of_them(here: Path) -> None:
    a, b = models("a", "b")
    out = made("models: [{model: a}, {model: b}]\nmerge_method: linear\nbase_model: a\nparameters: {weight: 1}")
    np.testing.assert_allclose(out[q(0)], (a[q(0)] + b[q(0)]) / 2, rtol=1e-6)


def test_slerp_goes_from_the_base(here: Path) -> None:
    """Whatever the order of the models."""
    text = "models: [{{model: {}}}, {{model: {}}}]\nmerge_method: slerp\nbase_model: b\nparameters: {{t: 0.3}}"
    one, two = made(text.format("a", "b"), "o1"), made(text.format("b", "a"), "o2")
    flags = MergeConfig(merge_method="slerp", model_path_list=["b", "a"], slerp_alpha=0.3, output_path="o3")
    merge(flags, progress=False)
    assert all((one[name] == two[name]).all() and (one[name] == value).all() for name, value in read(Path("o3")).items())


def test_seed_and_dtype(here: Path) -> None:
    out = made("models: [{model: a}, {model: b}]\nmerge_method: linear\nparameters: {weight: 1}\ndtype: torch.bfloat16")
    (a, b) = models("a", "b")
    np.testing.assert_allclose(out[q(0)], (a[q(0)] + b[q(0)]) / 2, rtol=2**-8)
    assert json.loads(Path("out/merge_lock.json").read_text())["tensors"][q(0)]["dtype"] == "bfloat16"


# --- flags and recipes are one -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [*METHODS, "trim+slerp"])
def test_the_recipe_that_flags_mean_gives_the_same_bytes(here: Path, method: str) -> None:
    parts = {"merge_method": method} if method in METHODS else {"sparsify_type": "trim", "merge_type": "slerp"}
    fields: dict[str, Any] = {"model_path_list": ["a", "b"], "base_model_path": "c", "seed": 3, "reserve_p": 0.6, **parts}
    config = MergeConfig(**fields, output_path="flags")
    text = to_yaml(Request.of(config).checked_recipe())
    assert yaml.safe_load(text)["merge_method"] == f"paddlenlp:{method}"
    merge(config, progress=False)
    made(text, "recipe")
    assert Path("flags/model.safetensors").read_bytes() == Path("recipe/model.safetensors").read_bytes()


def test_what_a_merge_records_repeats_it_from_anywhere(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "models: [{model: a}, {model: b}]\nmerge_method: slerp\nbase_model: a\nparameters: {t: [0, 0.5, 1]}\nseed: 5"
    made(text)
    first = Path("out/model.safetensors").read_bytes()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    config = MergeConfig.from_mapping(MergeConfig.from_file("../out/merge_config.json"))
    config.output_path = "again"
    merge(config, progress=False)
    assert Path("again/model.safetensors").read_bytes() == first


RECIPE = """
slices:
  - sources:
      - model: a
        layer_range: [0, 2]
        parameters:
          weight: 0.5
      - model: b
        layer_range: [1, 3]
    parameters:
      weight: [{filter: mlp, value: [1, 2]}, {value: 3}]
merge_method: linear
parameters:
  normalize: false
dtype: float16
"""


def test_what_is_written_is_what_was_read() -> None:
    recipe = parse(RECIPE, "r").recipe
    again = parse(to_yaml(recipe), "r").recipe
    assert again.slices == recipe.slices
    assert (again.settings, again.out_dtype, again.models) == (recipe.settings, recipe.out_dtype, recipe.models)


def test_print_recipe(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--merge_method", "ties", "--model_path_list", "a", "b", "--base_model_path", "c", "--print_recipe"])
    assert caught.value.code == 0
    said = yaml.safe_load(capsys.readouterr().out)
    assert (said["merge_method"], said["base_model"]) == ("paddlenlp:ties", "c")
    assert said["parameters"]["reserve_p"] == 0.7
    assert not Path("merged-ties").exists()


def test_the_command_line_takes_a_recipe(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("r.yaml").write_text(RECIPE)
    with pytest.raises(SystemExit) as caught:
        main(["r.yaml", "--output_path", "out", "-q"])
    assert caught.value.code == 0
    assert read(Path("out"))[q(1)].shape == (3, 3)
    with pytest.raises(SystemExit) as caught:
        main(["r.yaml", "--output_path", "o2", "--reserve_p", "0.3", "--merge_method", "ties"])
    assert caught.value.code == 1
    assert (
        "--merge_method, --reserve_p: a recipe gives the models, the method and the parameters, so leave these flags out"
        in capsys.readouterr().err
    )


# --- several merges ----------------------------------------------------------------------------------------------------

STAGES = """
name: {first}
models: [{{model: a, parameters: {{weight: [0.2, 0.8]}}}}, {{model: b, parameters: {{weight: 0.5}}}}]
merge_method: linear
dtype: {dtype}
---
models: [{{model: {first}}}, {{model: deep3}}]
merge_method: {method}
base_model: c
parameters: {parameters}
dtype: bfloat16
---
name: deep3
slices:
  - sources: [{{model: deep, layer_range: [0, 2]}}]
  - sources: [{{model: deep, layer_range: [4, 6]}}]
merge_method: passthrough
dtype: {dtype}
"""


@pytest.mark.parametrize("dtype", few(["bfloat16", "float32"]))
@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("paddlenlp:della", "{reserve_p: 0.5, epsilon: 0.2}"),
        *few([("task_arithmetic", "{weight: 0.7}"), ("paddlenlp:ties", "{reserve_p: 0.3}")], 0, unpack=True),
    ],
)
def test_merges_of_merges_are_as_if_each_had_been_written(here: Path, method: str, parameters: str, dtype: str) -> None:
    text = STAGES.format(first="mixed", method=method, parameters=parameters, dtype=dtype)
    first, second, third = text.split("---")
    merge(MergeConfig(recipe_yaml=first, output_path="mixed"), progress=False)
    merge(MergeConfig(recipe_yaml=third, output_path="deep3"), progress=False)
    merge(MergeConfig(recipe_yaml=second, output_path="written"), progress=False)
    for n_process in (1, 2):
        out = f"staged{n_process}"
        staged = STAGES.format(first="unwritten", method=method, parameters=parameters, dtype=dtype).replace(
            "deep3", "three"
        )
        merge(MergeConfig(recipe_yaml=staged, output_path=out, n_process=n_process, account=f"{out}.json"), progress=False)
        assert Path(out, "model.safetensors").read_bytes() == Path("written/model.safetensors").read_bytes()
        assert json.loads(Path(out, "config.json").read_text())["num_hidden_layers"] == 4
        assert verify(out, None, 1, False, progress=False).off == []
    assert not Path("unwritten").exists()
    content = json.loads(Path("staged1.json").read_text())
    of_deep = next(one for one in content["inputs"] if one["path"] == "deep")
    assert {row["left_out"] for row in of_deep["each"] if "left_out" in row} == {"no slice takes it"}
    assert "made by unwritten (merged by this recipe)" in content["tensors"][0]["notes"][0]
    lock = json.loads(Path("staged1/merge_lock.json").read_text())
    assert [Path(one["path"]).name for one in lock["inputs"] if one["files"]] == ["a", "b", "deep", "c"]


def test_a_stage_of_a_stage_measured_over_many_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of several blocks, cut for several workers, sampled and passed over more than once."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("a", "b", "base")):
        random = np.random.default_rng(seed)
        tensors = {"big": random.standard_normal((500, 700)), "ids": np.arange(5), "none": np.zeros((0, 2))}
        write(tmp_path / name, tensors, "bfloat16")
    ties = "models: [{{model: {}}}, {{model: {}}}]\nmerge_method: paddlenlp:ties\nbase_model: base"
    made(ties.format("a", "b"), "one")
    made(ties.format("one", "a"), "two")
    made(ties.format("two", "one"), "written")
    recipes = f"name: x\n{ties.format('a', 'b')}\n---\nname: y\n{ties.format('x', 'a')}\n---\n{ties.format('y', 'x')}"
    made(recipes, "staged", n_process=2)
    assert Path("staged/model.safetensors").read_bytes() == Path("written/model.safetensors").read_bytes()


def test_a_stage_that_nothing_uses_is_left_out() -> None:
    told = parse(f"name: x\n{LINEAR.replace('model: b', 'model: not_there')}\n---\n{LINEAR}", "r.yaml")
    assert told.notes == ("r.yaml:1:1: no recipe uses 'x', so it is not made",)
    assert (told.recipe.stages, told.recipe.models) == ((), ("a", "b"))


def test_stages_are_written_as_they_were_read() -> None:
    text = STAGES.format(first="m", method="task_arithmetic", parameters="{weight: 1}", dtype="float16")
    recipe = parse(text, "r").recipe
    again = parse(to_yaml(recipe), "r").recipe
    assert (again.stages, again.slices, again.models, again.base) == (
        recipe.stages,
        recipe.slices,
        recipe.models,
        recipe.base,
    )


# --- mistakes ----------------------------------------------------------------------------------------------------------


def test_all_mistakes_are_told_by_line_and_column() -> None:
    text = """\
models:
  - model: a
    parametrs: {weight: 1}
  - modell: b
merge_method: linear
parameters:
  wieght: 1
  normalize: perhaps
  weight:
    - {filter: 're:(', value: 1}
    - {filtr: mlp, value: x}
dtype: bfloat61
bse_model: a
"""
    assert mistakes(text) == [
        "r.yaml:13:1: unknown key 'bse_model'; did you mean 'base_model'?",
        "r.yaml:12:8: dtype 'bfloat61' must be one of bfloat16, float16, float32, float64, float8_e4m3fn, float8_e5m2,"
        " fp8_block, fp8_channel; did"
        " you mean 'bfloat16'?",
        "r.yaml:7:3: unknown parameter 'wieght'; did you mean 'weight'?; linear takes weight, normalize",
        "r.yaml:8:14: parameter 'normalize' must be true or false, not 'perhaps'",
        "r.yaml:10:16: 're:(' is not a regular expression (missing ), unterminated subpattern at position 0)",
        "r.yaml:11:8: unknown key 'filtr'; did you mean 'filter'?; an item of 'weight' has filter, value",
        "r.yaml:11:27: parameter 'weight' must be a number below 1e30, not 'x'",
        "r.yaml:3:5: unknown key 'parametrs'; did you mean 'parameters'?; a model has model, parameters",
        "r.yaml:4:5: unknown key 'modell'; did you mean 'model'?; a model has model, parameters",
        "r.yaml:4:5: model, the path of a checkpoint, is missing",
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("models: [{model: a}]", "r.yaml:1:1: merge_method is missing"),
        ("models: [{model: a}]\nmerge_method: slepr", "r.yaml:2:15: unknown merge_method 'slepr'; did you mean 'slerp'?"),
        ("merge_method: linear", "r.yaml:1:1: give one of models, slices and modules, not none of them"),
        ("models: []\nslices: []\nmerge_method: linear", "not models, slices"),
        ("models: [{model: a}]\nmerge_method: task_arithmetic", "task_arithmetic needs base_model, which is missing"),
        ("models: [{model: a}, {model: b}, {model: c}]\nbase_model: a\nmerge_method: slerp", "slerp takes 2 models, not 3"),
        ("slices: [{sources: [{model: a}]}]\nmerge_method: passthrough", "r.yaml:1:21: layer_range is missing"),
        ("slices: [{sources: [{model: a, layer_range: [3, 3]}]}]\nmerge_method: passthrough", "must be two whole numbers"),
        ("slices: [{sources: [{model: a, layer_range: [0, 0]}]}]\nmerge_method: passthrough", "r.yaml:1:9: slices take no"),
        (
            "slices: [{sources: [&a {model: a, layer_range: [0, 2]}]}, {sources: [{model: a, layer_range: [0, 0]}]},"
            " {sources: [*a]}]\nmerge_method: passthrough",
            "r.yaml:1:59: layer_range [0, 0] takes no layers, which only a first or a last slice can do",
        ),
        (
            "slices: [{sources: [{model: a, layer_range: [0, 3]}, {model: b, layer_range: [0, 2]}]}]\nmerge_method: linear",
            "must have the same number of layers",
        ),
        ("models: [{model: a}\n", "r.yaml:2:1: can't be parsed"),
        ("models: [{model: a}]\nmodels: [{model: b}]\nmerge_method: linear", "r.yaml:2:1: key 'models' stands twice"),
        ("models: {a: b}\nmerge_method: linear", "r.yaml:1:9: models must be a list"),
        ("- a", "a recipe must be a mapping of names to values"),
        (f"{LINEAR}\n---\n{LINEAR}", "a second recipe without a name"),
        (f"name: x\n{LINEAR}\n---\nname: x\n{LINEAR}\n---\n{LINEAR}", "r.yaml:6:1: two recipes are named 'x'"),
        ("name: x\nmodels: [{model: x}]\nmerge_method: linear\nparameters: {weight: 1}", "'x' uses its own output"),
        ("", "r.yaml: contains no recipe"),
        ("models: [{model: a}, {model: b}]\nmerge_method: linear\nparameters: {weight: []}", "'weight' is an empty list"),
        (f"expert_layout: split\n{LINEAR}", "r.yaml:1:1: 'expert_layout' is not a key of recipes but a flag"),
    ],
)
def test_a_mistake_is_one_sentence(text: str, words: str) -> None:
    assert any(words in sentence for sentence in mistakes(text)), mistakes(text)


def test_what_mergekit_ignores_is_said_and_ignored() -> None:
    told = parse(
        """
models:
  - model: a
    parameters: {weight: 1, normalize: true}
  - model: b
merge_method: linear
normalize: true
random_seed: 3
parameters: {weight: 1, int8_mask: true, t: 3}
""",
        "r.yaml",
    )
    assert list(told.notes) == [
        "r.yaml:7:1: 'normalize' has no effect, here or in mergekit; it belongs under parameters",
        "r.yaml:8:1: 'random_seed' has no effect, here or in mergekit",
        "r.yaml:9:25: 'int8_mask' has no effect: masks take no memory here",
        "r.yaml:9:42: 't' has no effect with linear, which takes weight, normalize",
        "r.yaml:4:29: 'normalize' applies to all models together: under a single model it has no effect, as in mergekit",
    ]


def test_a_parameter_that_nothing_sets(here: Path) -> None:
    with pytest.raises(ConfigError, match=r"parameter 'weight' is required, and nothing sets it \(for tensors 'model"):
        made("models: [{model: a}, {model: b}]\nmerge_method: linear\nparameters: {weight: [{filter: mlp, value: 1}]}")


@given(st.text(max_size=60), st.sampled_from(["", "models: [{model: a}]\nmerge_method: linear\n", RECIPE]))
def test_no_text_breaks_the_reader(text: str, before: str) -> None:
    try:
        told = parse(before + text, "r")
    except ConfigError as error:
        told, problems = None, error.problems
    if told is None:
        assert all(sentence.startswith("r:") for sentence in problems)
    else:
        assert parse(to_yaml(told.recipe), "r").recipe.slices == told.recipe.slices


# --- mergekit's methods by flags -----------------------------------------------------------------------------------------


def test_flags_reach_methods_that_paddlenlp_does_not_have(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    given: dict[str, Any] = {"model_path_list": ["a", "b"], "base_model_path": "c", "weight_list": [1.0, 0.5]}
    config = MergeConfig(merge_method="breadcrumbs", reserve_p=0.5, scale=0.7, epsilon=0.3, **given, output_path="flags")
    config.method_parameters = ["gamma=0.1"]
    merge(config, progress=False)
    assert "--epsilon: no effect with breadcrumbs" in caplog.text
    text = """
models: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 0.5}}]
merge_method: breadcrumbs
base_model: c
parameters: {density: 0.5, gamma: 0.1, lambda: 0.7}
"""
    made(text, "recipe")
    assert Path("flags/model.safetensors").read_bytes() == Path("recipe/model.safetensors").read_bytes()
    again = MergeConfig.from_mapping(MergeConfig.from_file("flags/merge_config.json"))
    again.output_path = "again"
    merge(again, progress=False)
    assert Path("again/model.safetensors").read_bytes() == Path("recipe/model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"method_parameters": ["gama=0.1"]}, "unknown parameter 'gama'; did you mean 'gamma'?"),
        (
            {"method_parameters": ["gamma"]},
            "--method_parameters 'gamma' must be name=value; breadcrumbs takes weight, density",
        ),
        ({"weight_list": [1.0]}, "--weight_list has 1 numbers for 2 models"),
        ({"base_model_path": None}, "--merge_method breadcrumbs needs --base_model_path"),
        ({"method_parameters": ["gamma=x"]}, "--method_parameters 'gamma=x': parameter 'gamma' must be a number below 1e30"),
        ({"merge_method": "nearswap"}, "nearswap needs --method_parameters t=..."),
        ({"model_path_list": None}, "give the models to merge: --model_path_list a b"),
    ],
)
def test_flags_of_such_methods_that_are_wrong(here: Path, fields: dict[str, Any], words: str) -> None:
    given = {"model_path_list": ["a", "b"], "base_model_path": "c", "output_path": "out", **fields}
    with pytest.raises(ConfigError) as caught:
        merge(MergeConfig(**{"merge_method": "breadcrumbs", **given}), progress=False)
    assert words in str(caught.value)


@pytest.mark.parametrize("name", [name for name in NAMED if name not in METHODS])
@pytest.mark.parametrize("weight", ["0.30000000000000004", "1e-7", "3"])
def test_flags_mean_the_recipe_that_they_print(name: str, weight: str) -> None:
    """Numbers reach the recipe as they are, and its text, parsed, is the same recipe."""
    parameters = {"nearswap": ["t=0.1"], "lines": ["alpha=0.2"]}.get(name)
    models = ["a", "b", "c"][: min(NAMED[name].most or 2, max(NAMED[name].least, 2)) - (NAMED[name].base == "first")]
    weights = [float(weight)] * len(models)
    if name == "rewarded_soup":  # whose weights add up to 1
        weights = [1e-7, 1 - 1e-7]
    flags = MergeConfig(
        merge_method=name,
        model_path_list=models,
        base_model_path=None if name == "nuslerp" else "base",
        weight_list=weights,
        method_parameters=parameters,
        reserve_p=0.1 + 0.2,
        scale=1 / 3,
    )
    recipe = Request.of(flags).checked_recipe()
    assert parse(to_yaml(recipe), "printed").recipe == recipe
    found = [one.settings["weight"] for one in recipe.slices[0].inputs if "weight" in one.settings]
    weighted = any(parameter.name == "weight" for parameter in recipe.method.parameters)
    assert [constant(value) for value in weights if weighted] == [one for one in found if one != constant(1.0)]


@pytest.mark.parametrize("method", ["arcee_fusion", "nearswap", "karcher"])
def test_state_dicts_merge_as_files_do(here: Path, method: str) -> None:
    """Whatever the place that the base has among what is merged."""
    parameters = ["t=0.3"] if method == "nearswap" else None
    a, b = models("a", "b")
    config = MergeConfig(merge_method=method, method_parameters=parameters, model_path_list=["b"], base_model_path="a")
    config.output_path = "files"
    merge(config, progress=False)
    narrow = [{name: x.astype(np.float32) for name, x in model.items()} for model in (b, a)]
    merged = merge_by_recipe(narrow, Request.of(config).checked_recipe(), Request.of(config).engine)
    expected = read(Path("files"))
    assert all((merged[name] == expected[name].astype(np.float32)).all() for name in expected)


def test_a_model_that_only_gives_its_config(here: Path) -> None:
    text = "models: [{model: a}]\nmerge_method: passthrough\nbase_model: c"
    (a,) = models("a")
    out = made(text, account="account.json")
    assert all((out[name] == a[name].astype(np.float32)).all() for name in a)
    left = json.loads(Path("account.json").read_text())["inputs"][1]["each"]
    assert {row["left_out"] for row in left} == {"the recipe merges nothing of it"}


def test_layers_of_other_dtypes_are_refused(here: Path) -> None:
    model(here / "narrow", 5, dtype="bfloat16")
    text = """
slices: [{sources: [{model: a, layer_range: [0, 2]}, {model: narrow, layer_range: [0, 2]}]}]
merge_method: linear
parameters: {weight: 1}
"""
    with pytest.raises(CheckpointError, match="are made of tensors of different dtypes, float32, bfloat16; give the dtype"):
        made(text)
    assert made(f"{text}dtype: float32")[q(0)].shape == (3, 3)


def test_a_layer_that_a_slice_takes_may_not_get_lost(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The account doesn't excuse it, as it does what no slice takes."""
    from paddle_merge.plan import planner

    whole = planner.assemble
    monkeypatch.setattr(planner, "assemble", lambda *given: ([one for one in whole(*given)[0] if one.name != up(1)], []))
    with pytest.raises(CheckpointError, match=r"up_proj.+, 0 of 15 elements are read"):
        made("slices: [{sources: [{model: a, layer_range: [0, 3]}]}]\nmerge_method: passthrough")


def test_a_seed_given_by_flag_is_every_stages(here: Path) -> None:
    dare = "merge_method: paddlenlp:dare_linear\nbase_model: c\nparameters: {reserve_p: 0.5}"
    text = f"name: x\nmodels: [{{model: a}}, {{model: b}}]\n{dare}\n---\nmodels: [{{model: x}}, {{model: b}}]\n{dare}"
    one, two = made(text, "one"), made(text, "two", seed=9)
    assert Request.of(MergeConfig(recipe_yaml=text, seed=9)).checked_recipe().stages[0].seed == 9
    assert any((one[name] != two[name]).any() for name in one)


@pytest.mark.parametrize(
    ("method", "parameters", "said"),
    [
        ("slerp", "{slerp_alpha: 3}", "parameter 'slerp_alpha' 3 must lie between 0"),
        ("ties", "{reserve_p: 0}", "parameter 'reserve_p' 0 keeps nothing"),
        ("dare_linear", "{reserve_p: 1.5}", "parameter 'reserve_p' 1.5 is the fraction"),
        ("della", "{epsilon: 3}", "parameter 'epsilon' 3 with 'reserve_p' 0.7 would need probabilities"),
        ("ties", "{ties_elect_type: most}", "parameter 'ties_elect_type' must be sum or count, not 'most'"),
        ("linear", "{weight: 0}", "parameter 'weight' 0 0 sums to zero, so it can't be normalised; set normalize: false"),
    ],
)
def test_parameters_of_paddlenlps_methods_that_are_wrong(here: Path, method: str, parameters: str, said: str) -> None:
    """As their flags are, in a recipe's words; also for some tensors only."""
    text = f"merge_method: paddlenlp:{method}\nbase_model: c\nmodels: [{{model: a}}, {{model: b}}]\nparameters: {parameters}"
    with pytest.raises(ConfigError) as caught:
        made(text)
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(said)


def test_one_model_is_none_for_paddlenlps_slerp(here: Path) -> None:
    with pytest.raises(ConfigError, match="paddlenlp:slerp takes 2 models, not 1"):
        made("merge_method: paddlenlp:slerp\nbase_model: c\nmodels: [{model: a}]")


@pytest.mark.parametrize("kind", ["np", "pd"])
def test_state_dicts_of_paddles_layout_have_their_rows_across(kind: str) -> None:
    """model_stock with an angle per output of a layer: [in, out] merges to the transpose of what [out, in] does."""
    random = np.random.default_rng(0)
    name, embed = "model.layers.0.mlp.up_proj.weight", "model.embed_tokens.weight"
    states = [
        {name: random.standard_normal((5, 3)).astype("float32"), embed: random.standard_normal((4, 3)).astype("float32")}
        for _ in range(3)
    ]
    transposed = [{name: np.ascontiguousarray(state[name].T), embed: state[embed]} for state in states]
    fields: dict[str, Any] = {"merge_method": "model_stock", "method_parameters": ["filter_wise=true"]}
    expected = merge_state_dicts(states[1:], MergeConfig(**fields, layout=["hf"] * 3), states[0])
    as_they_stand = merge_state_dicts(transposed[1:], MergeConfig(**fields), transposed[0])
    assert np.abs(as_they_stand[name].T - expected[name]).max() > 0.01
    if kind == "np":
        found = merge_state_dicts(transposed[1:], MergeConfig(**fields, layout=["paddleformers"] * 3), transposed[0])
    else:
        paddle = import_paddle()
        tensors = [{key: paddle.to_tensor(value) for key, value in state.items()} for state in transposed]
        merged = merge_state_dicts(tensors[1:], MergeConfig(**fields, tensor_type="pd"), tensors[0])
        found = {key: value.numpy() for key, value in merged.items()}
    np.testing.assert_allclose(found[name].T, expected[name], rtol=1e-6)
    np.testing.assert_allclose(found[embed], expected[embed], rtol=1e-6)
    with pytest.raises(CheckpointError, match="they must be of one layout, not of hf, paddlenlp"):
        merge_state_dicts(states[1:], MergeConfig(**fields, layout=["hf", "hf", "paddlenlp"]), states[0])


def test_a_seed_by_flag_wins_over_the_recipes(here: Path) -> None:
    """0, too."""
    text = "models: [{model: b}]\nmerge_method: dare_linear\nbase_model: a\nparameters: {weight: 1, density: 0.5}\n"
    own, unsaid = made(text + "seed: 7"), made(text, "unsaid")
    assert (own[q(0)] != unsaid[q(0)]).any()
    for seed, expected in ((0, unsaid), (7, own), (None, own)):
        again = made(text + "seed: 7", f"again {seed}", seed=seed)
        assert (again[q(0)] == expected[q(0)]).all()
