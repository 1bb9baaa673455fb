"""Test recipes that might be read differently than in mergekit, found by running random ones with both programs
(tools/fuzz_recipes.py); users' mistakes; and that a printed recipe is the one that was read."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from paddle_merge import ConfigError, MergeConfig, merge
from paddle_merge.backends.kernels.mergers import _variance
from paddle_merge.commands.main import main
from paddle_merge.recipe.yaml_read import parse
from paddle_merge.recipe.yaml_write import to_yaml
from tests.support.checkpoints import read
from tests.support.recipes import made, mistakes, models, q, up
from tools.fuzz_recipes import Maker, make_models

HEAD = "lm_head.weight"


# --- slices and their bases ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "parameters"), [("linear", "{weight: 1}"), ("karcher", "{max_iter: 5}")])
def test_a_base_is_no_model_of_slices_that_do_not_name_it(here: Path, method: str, parameters: str) -> None:
    """Of whole models it is one. As in mergekit."""
    a, b, c = models("a", "b", "c")
    end = f"merge_method: {method}\nbase_model: c\nparameters: {parameters}"
    sliced = made(
        f"slices: [{{sources: [{{model: a, layer_range: [0, 4]}}, {{model: b, layer_range: [0, 4]}}]}}]\n{end}", "o1"
    )
    plain = made(f"models: [{{model: a}}, {{model: b}}]\nmerge_method: {method}\nparameters: {parameters}", "o2")
    whole = made(f"models: [{{model: a}}, {{model: b}}]\n{end}", "o3")
    assert all((sliced[name] == plain[name]).all() for name in plain)
    if method == "linear":
        np.testing.assert_allclose(sliced[q(0)], (a[q(0)] + b[q(0)]) / 2, rtol=1e-6)
        np.testing.assert_allclose(whole[q(0)], (a[q(0)] + b[q(0)] + c[q(0)]) / 3, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("common", ["base_model: a\n", ""])
def test_a_slice_may_have_a_base_of_its_own(here: Path, common: str) -> None:
    text = f"""
slices:
  - sources: [{{model: b, layer_range: [0, 2]}}, {{model: a, layer_range: [0, 2]}}]
    base_model: a
  - sources: [{{model: a, layer_range: [1, 3]}}, {{model: c, layer_range: [2, 4]}}]
    base_model: c
{common}merge_method: task_arithmetic
parameters: {{weight: 1, lambda: 0.5}}
"""
    a, b, c = models("a", "b", "c")
    out = made(text)
    np.testing.assert_allclose(out[q(1)], (a[q(1)] + b[q(1)]) / 2, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(out[q(2)], (a[q(1)] + c[q(2)]) / 2, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(out[HEAD], (a[HEAD] + c[HEAD]) / 2, rtol=1e-5, atol=1e-6)
    recipe = parse(text, "r").recipe
    assert parse(to_yaml(recipe), "r").recipe == recipe


@pytest.mark.parametrize("method", ["ties", "dare_linear", "sce", "ram"])
def test_layers_of_the_base_alone_stay_as_they_are(here: Path, method: str) -> None:
    """For keeping some layers while others are merged; in mergekit without a weight, too."""
    text = f"""
slices:
  - sources: [{{model: c, layer_range: [0, 1]}}]
  - sources: [{{model: a, layer_range: [1, 2], parameters: {{weight: 1}}}}, {{model: c, layer_range: [1, 2]}}]
merge_method: {method}
base_model: c
"""
    a, c = models("a", "c")
    out = made(text if method in ("ties", "dare_linear") else text.replace(", parameters: {weight: 1}", ""))
    assert (out[q(0)] == c[q(0)].astype(np.float32)).all()
    np.testing.assert_allclose(out[up(1)], a[up(1)], rtol=1e-4, atol=1e-6)
    recipe = parse(text, "r").recipe
    assert parse(to_yaml(recipe), "r").recipe == recipe


def test_sce_of_one_model(here: Path) -> None:
    """It differs from no other, so nothing of it is selected; unless all is. As in mergekit."""
    text = "models: [{{model: a}}]\nmerge_method: sce\nbase_model: c\nparameters: {{select_topk: {}}}"
    a, c = models("a", "c")
    np.testing.assert_allclose(made(text.format(1), "o1")[q(0)], a[q(0)], rtol=1e-5, atol=1e-6)
    assert (made(text.format(0.5), "o2")[q(0)] == c[q(0)].astype(np.float32)).all()
    found = np.full(3, 7.0)
    _variance(np.array([[1.0, -2.0, 3.0]]), 0, found)
    assert found.tolist() == [0.0, 0.0, 0.0]  # whatever was in memory


@pytest.mark.parametrize(
    ("sources", "words"),
    [
        (
            "[{model: a, layer_range: [0, 2]}, {model: b, layer_range: [1, 3]}]",
            "r.yaml:1:10: the sources have different layer ranges",
        ),
        (
            "[{model: c, layer_range: [0, 2]}, {model: c, layer_range: [1, 3]}]",
            "r.yaml:1:10: 'c', the base, is listed twice",
        ),
        ("[]", "r.yaml:1:10: sources, a list of models with a layer_range, is missing or empty"),
    ],
)
def test_slices_whose_base_is_in_doubt(sources: str, words: str) -> None:
    text = f"slices: [{{sources: {sources}}}]\nmerge_method: ties\nbase_model: c\nparameters: {{weight: 1}}"
    assert any(words in sentence for sentence in mistakes(text)), mistakes(text)


def test_what_comes_after_the_layers_is_made_of_all_models_of_the_last_slice(here: Path) -> None:
    """Where the first slice has fewer; mergekit then takes only as many as that has."""
    text = """
slices:
  - sources: [{model: a, layer_range: [0, 1]}]
  - sources: [{model: b, layer_range: [1, 2]}, {model: c, layer_range: [1, 2], parameters: {weight: 3}}]
merge_method: linear
parameters: {weight: 1}
"""
    a, b, c = models("a", "b", "c")
    out = made(text)
    np.testing.assert_allclose(out[HEAD], (b[HEAD] + 3 * c[HEAD]) / 4, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(out[q(0)], a[q(0)], rtol=1e-6)


# --- YAML ----------------------------------------------------------------------------------------------------------------


def test_anchors_and_merge_keys(here: Path) -> None:
    """As yaml.safe_load has them, and with it mergekit: a mapping's own names win, then the first that is taken over."""
    text = """
model: &common {weight: 2, normalize: false}
shared: &other {weight: 7, density: 0.5}
models:
  - {model: a, parameters: &own {<<: [*common, *other]}}
  - {model: b, parameters: {<<: *own, weight: 3}}
parameters: {<<: *common}
merge_method: linear
"""
    a, b = models("a", "b")
    np.testing.assert_allclose(made(text)[q(0)], 2 * a[q(0)] + 3 * b[q(0)], rtol=1e-5, atol=1e-6)
    assert not [note for note in parse(text, "r").notes if "shared" in note or "'model'" in note]


@pytest.mark.parametrize("said", ["yes", "y", "t", "on", "1", "True"])
def test_yes_in_all_of_its_ways(said: str) -> None:
    text = f"models: [{{model: a}}]\nmerge_method: linear\nparameters: {{weight: 1e-1, normalize: {said}}}"
    recipe = parse(text, "r").recipe
    assert (recipe.settings["normalize"][0].value, recipe.settings["weight"][0].value) == (True, 0.1)


MODELS = "models: [{model: a}, {model: b}]\nmerge_method: linear\n"
WEIGHT = "models: [{{model: a}}, {{model: b}}]\nmerge_method: linear\nparameters: {{weight: {}}}"
LAUGHS = "".join(f"{name}: &{name} [{', '.join(f'{{value: *{last}}}' for _ in range(9))}]\n" for last, name in zip("abcdefghij", "bcdefghijk"))  # fmt: skip # noqa: B905, E501


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            WEIGHT.format("[{filter: mlp, value: [{filter: up, value: 1}]}]"),
            "r.yaml:3:44: the value of 'weight' must be a single value or a",
        ),
        (
            WEIGHT.format("[0.5, {filter: mlp, value: 1}]"),
            "r.yaml:3:23: an item of 'weight' must be a mapping of names to values",
        ),
        (WEIGHT.format(""), "r.yaml:3:14: 'weight' has no value"),
        (WEIGHT.format("[1, ~]"), "r.yaml:3:26: parameter 'weight' must be a number below 1e30, not '~'"),
        (WEIGHT.format("9" * 5000), "r.yaml:3:22: parameter 'weight' must be a number below 1e30, not '999"),
        (WEIGHT.format("!!float abc"), "r.yaml:3:22: parameter 'weight' must be a number"),
        (WEIGHT.format("0:1:0.25"), "r.yaml:3:22: YAML takes '0:1:0.25' for 60.25, a number in base 60; write that"),
        (WEIGHT.format("1:30"), "r.yaml:3:22: YAML takes '1:30' for 90, a number in base 60"),
        (WEIGHT.format("1" + ":59" * 200), "r.yaml:3:22: YAML takes '1:59:59:59"),
        (WEIGHT.format("!new 1"), "r.yaml:3:22: can't be parsed (unknown tag !new)"),
        (WEIGHT.format("&w [{value: *w}]"), "r.yaml:3:22: the value of 'weight' must be a single"),
        (f"{MODELS}parameters: {{<<: [1]}}", "r.yaml:3:19: the value of << must be a mapping of names to values"),
        (
            f"{MODELS}parameters: {{<<: {{weight: 1}}, <<: {{weight: 2}}}}",
            "r.yaml:3:31: key '<<' stands twice; give it a list",
        ),
        (f"{MODELS}parameters: {{<<: *nowhere}}", "r.yaml:3:18: can't be parsed (found undefined alias 'nowhere')"),
        (f"a: &a [{{value: 1}}]\n{LAUGHS}{WEIGHT.format('*k')}", "the value of 'weight' must be a single"),
        ('models: [{model: "\\UFFFFFFFF"}]', "can't be parsed (no such character)"),
        ("models:\n\t- model: a\nmerge_method: linear", "r.yaml:2:1: can't be parsed (found character '\\t'"),
        ("models:\n\t- model: a\nmerge_method: linear", "; YAML takes spaces, not tabs"),
        ("models:\n  - model: a\n   parameters: {}\nmerge_method: linear", "is the indentation right?"),
        (f"{MODELS}parameters:\n  weight:\n    - filter: *\n", "a word that begins with * or & needs quotes"),
        (f"{MODELS.replace('a}', 'a' + chr(0) + '}')}", "r.yaml:1:19: can't be parsed (character 0x0 is not allowed)"),
        ('models: [{model: "a\\0"}]\nmerge_method: linear', "r.yaml:1:18: contains a NUL character"),
        ("models:\n  - model:a\nmerge_method: linear", "r.yaml:2:5: write model: a with a space after the colon"),
        ("models: []\nbase_model: a\nmerge_method: linear", "r.yaml:1:9: models is empty"),
        ("models: [{model: a}]\nmerge_method: LINAER", "unknown merge_method 'LINAER'; did you mean 'linear'?"),
        (f"models: {'[' * 1100}", "r.yaml: is nested too deeply"),
        ("---\n---\n", "r.yaml: contains no recipe"),
        (f"{MODELS}parameters: {{weight: 1}}\nseed: 1.5", "r.yaml:4:7: parameter 'seed' must be a whole number, not 1.5"),
        ("- a: 1", "r.yaml:1:1: a recipe must be a mapping of names to values"),
    ],
)
def test_what_users_get_wrong(text: str, words: str) -> None:
    assert any(words in sentence for sentence in mistakes(text)), mistakes(text)
    assert all(len(sentence) < 500 for sentence in mistakes(text))


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("begins", [b"", b"\xef\xbb\xbf"])
def test_files_from_other_systems(here: Path, ends: str, begins: bytes) -> None:
    Path("r.yaml").write_bytes(begins + MODELS.replace("\n", ends).encode() + f"parameters: {{weight: x}}{ends}".encode())
    with pytest.raises(ConfigError, match=r"^r\.yaml:3:22: parameter 'weight'"):
        merge(MergeConfig(recipe_yaml="r.yaml", output_path="out"), progress=False)


def command(*words: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(list(words))
    return int(caught.value.code or 0)


def test_a_file_of_several_documents(here: Path) -> None:
    text = f"name: x\n{MODELS}parameters: {{weight: 1}}\n---\n{MODELS.replace('b', 'x')}parameters: {{weight: 1}}\n---\n"
    Path("r.yaml").write_text(text)
    assert command("r.yaml", "--output_path", "out", "-q") == 0
    a, b = models("a", "b")
    np.testing.assert_allclose(read(Path("out"))[q(0)], 0.75 * a[q(0)] + 0.25 * b[q(0)], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("modles: [{model: a}]\nmerge_method: linear", "error: r.yaml:1:1: unknown key 'modles'; did you mean 'modules'?"),
        ("merge_method: linear\nbase_model: a", "error: r.yaml:1:1: give one of models, slices and modules, not none"),
        ("merge_method: ties\nreserve_p: 1\nreserve_p: 2", "error: r.yaml:3:1: can't be parsed (the same key twice)"),
        ("model_path_list: [a, b", "error: r.yaml:2:1: can't be parsed"),
        (
            "sweep: {pre: a}",
            "error: r.yaml: is no recipe to merge by: it has a section 'sweep', which python -m paddle_merge sweep",
        ),
        (
            f"{WEIGHT.format('{search: [0, 1]}')}\nsearch: {{seed: 1}}",
            "a section 'search', which python -m paddle_merge evolve",
        ),
        ("[1, 2]", "error: r.yaml: must hold the fields of a merge, such as merge_method and model_path_list; or a recipe"),
    ],
)
def test_files_with_mistakes_on_the_command_line(here: Path, capsys: Any, text: str, words: str) -> None:
    Path("r.yaml").write_text(text + "\n")
    assert command("r.yaml", "--output_path", "out") == 1
    assert words in capsys.readouterr().err
    assert not Path("out").exists()


def test_parameters_that_mergekit_once_had() -> None:
    told = parse(f"{MODELS}parameters: {{weight: 1, embed_slerp: true}}", "r.yaml")
    assert told.notes == (
        "r.yaml:3:25: 'embed_slerp' has no effect: mergekit had it once; embeddings are merged as all else",
    )


# --- what is printed is what was read --------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(0, 10**9))
def test_any_recipe_is_printed_as_it_was_read(number: int) -> None:
    made_up = Maker(number, Path("models")).recipe()
    try:
        recipe = parse(yaml.safe_dump(made_up, sort_keys=False), "r").recipe
    except ConfigError:
        return  # some are wrong on purpose
    assert parse(to_yaml(recipe), "r").recipe == recipe


NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=30)


@settings(deadline=None)
@given(
    st.lists(
        st.one_of(
            NAMES,
            st.sampled_from(["yes", "a\x85b", "a\u2028b\n", "~", "null", "1e-3", "<<", "*a", "a b", "- a", "a: b", "0x1"]),
        ),
        min_size=3,
        max_size=3,
    )
)
def test_models_of_any_name_are_printed_as_they_were_read(names: list[str]) -> None:
    first, second, base = names
    content = {"merge_method": "ties", "base_model": base, "models": [{"model": first}, {"model": second}]}
    text = yaml.safe_dump({**content, "parameters": {"weight": [{"filter": first, "value": 1}, {"value": 0.5}]}})
    try:
        recipe = parse(text, "r").recipe
    except ConfigError:
        return  # a regular expression that is none; nothing but the base
    assert set(recipe.sources) == set(names)
    assert parse(to_yaml(recipe), "r").recipe == recipe


def test_scale_needs_a_base(here: Path) -> None:
    """As --scale does; 1, which recipes of flags say, is none."""
    text = "models: [{model: a}, {model: b}]\nmerge_method: paddlenlp:linear\nparameters: {weight: 1, scale: 0.5}"
    assert mistakes(text) == ["r.yaml:1:9: 'scale' is a factor on the merged task vector, so it needs base_model"]
    made(text.replace("0.5", "1.0"))


@pytest.mark.parametrize("number", range(8))
def test_the_record_of_a_recipe_repeats_it_to_the_byte(here: Path, number: int) -> None:
    make_models(here / "models")
    numbers = iter(range(100 * number, 100 * number + 100))
    while True:
        text = yaml.safe_dump(Maker(next(numbers), Path("models")).recipe())
        try:
            merge(MergeConfig(recipe_yaml=text, output_path="one", seed=number), progress=False)
        except ConfigError:
            continue
        break
    again = MergeConfig.from_mapping(MergeConfig.from_file("one/merge_config.json"))
    again.output_path = "two"
    merge(again, progress=False)
    assert Path("one/model.safetensors").read_bytes() == Path("two/model.safetensors").read_bytes()
    records = [json.loads(Path(out, "merge_config.json").read_text()) for out in ("one", "two")]
    assert records[1] == {**records[0], "output_path": records[1]["output_path"]}


def test_what_config_says_of_each_layer_goes_with_the_layers(here: Path) -> None:
    """transformers refuses a config.json whose layer_types aren't as many as its layers."""
    for name in ("a", "deep"):
        config = json.loads(Path(name, "config.json").read_text())
        kinds = [f"{name}{number}" for number in range(config["num_hidden_layers"])]
        Path(name, "config.json").write_text(json.dumps({**config, "layer_types": kinds, "eos_token_id": [1, 2, 3, 4]}))
    text = """
name: stacked
slices:
  - sources: [{model: a, layer_range: [2, 4]}]
  - sources: [{model: deep, layer_range: [3, 5]}]
merge_method: passthrough
---
slices:
  - sources: [{model: stacked, layer_range: [1, 3]}]
  - sources: [{model: a, layer_range: [0, 1]}, {model: deep, layer_range: [5, 6]}]
  - sources: [{model: b, layer_range: [1, 2]}]
merge_method: linear
base_model: a
parameters: {weight: 1}
"""
    made(text)
    config = json.loads(Path("out/config.json").read_text())
    assert (config["num_hidden_layers"], config["eos_token_id"]) == (4, [1, 2, 3, 4])
    assert config["layer_types"] == ["a3", "deep3", "a0", "a1"]  # b has none; the config source's


# --- what people share ---------------------------------------------------------------------------------------------------


def models_of(text: str) -> tuple[str, ...]:
    return parse(text, "r.yaml").recipe.sources


def test_numbers_for_booleans() -> None:
    """mergekit writes booleans so."""
    text = "merge_method: linear\nparameters: {weight: 1, normalize: %s}\nmodels: [{model: a}]"
    for said, meant in (("1.0", True), ("0.0", False), ("1", True), ("0", False), ("true", True)):
        recipe = parse(text % said, "r.yaml").recipe
        assert recipe.settings["normalize"][0].value is meant


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("merge_method: linear\nlicense: mit\nmodels: [{model: a, parameters: {weight: 1}}]", "'license' has no effect"),
        ("merge_method: linear\nparameters: {weight: 1, dtype: bfloat16}\nmodels: [{model: a}]", "beside merge_method"),
        ("merge_method: linear\nparameters: {weight: 1, smooth: true}\nmodels: [{model: a}]", "'smooth' has no effect"),
        ("merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: a, merge_method: ties}]", "'merge_method' has no"),
        (
            "merge_method: passthrough\nslices: [{merge_method: slerp, sources: [{model: a, layer_range: [0, 1]}]}]",
            "'merge_method' has no effect in a slice",
        ),
    ],
)
def test_what_mergekit_ignores_is_a_note(text: str, note: str) -> None:
    assert any(note in one for one in parse(text, "r.yaml").notes)


@pytest.mark.parametrize("key", ["weight", "weigth", "densty", "density", "base_model", "base", "filter", "layer_range"])
def test_what_means_something_elsewhere_is_an_error(key: str) -> None:
    text = f"merge_method: linear\nparameters: {{weight: 1}}\nmodels: [{{model: a, {key}: 0.5}}]"
    with pytest.raises(ConfigError, match=f"r.yaml:3:21: unknown key '{key}'"):
        parse(text, "r.yaml")


@pytest.mark.parametrize("name", ["LINEAR", "Linear"])
def test_methods_in_capitals(name: str) -> None:
    text = f"merge_method: {name}\nparameters: {{weight: 1}}\nmodels: [{{model: a}}]"
    assert parse(text, "r.yaml").recipe.method.name == "linear"


@pytest.mark.parametrize(
    ("said", "spec"),
    [
        ("{path: org/a, revision: main}", "org/a@main"),
        ("{model: {path: org/a}}", "org/a"),
        ("{model: org/a, lora: org/b}", "org/a+org/b"),
        ("{model: {path: org/a, revision: v1}, lora: {path: org/b}, override_architecture: X}", "org/a@v1+org/b"),
        ("org/a@v1", "org/a@v1"),
    ],
)
def test_a_model_as_a_mapping(said: str, spec: str) -> None:
    text = f"merge_method: linear\nparameters: {{weight: 1}}\nbase_model: {said}\nmodels: [{{model: {said}}}]"
    assert models_of(text) == (spec,)


def test_a_revision_of_a_folder_has_no_effect(tmp_path: Path) -> None:
    text = f"merge_method: linear\nparameters: {{weight: 1}}\nmodels: [{{model: {tmp_path}@main}}]"
    parsed = parse(text, "r.yaml")
    assert parsed.recipe.sources == (str(tmp_path),)
    assert any("the revision 'main' has no effect" in note for note in parsed.notes)


@pytest.mark.parametrize("name", ["@1", "a@", "@", "@a@"])
def test_names_with_an_at_that_say_no_revision(name: str) -> None:
    assert models_of(f"merge_method: linear\nparameters: {{weight: 1}}\nmodels: [{{model: '{name}'}}]") == (name,)


def test_a_path_with_an_at_is_not_the_folder_before_it(tmp_path: Path) -> None:
    """runs@v1/model isn't there, and runs is: another model."""
    (tmp_path / "runs").mkdir()
    path = f"{tmp_path}/runs@v1/model"
    assert models_of(f"merge_method: linear\nparameters: {{weight: 1}}\nmodels: [{{model: {path}}}]") == (path,)


def test_a_mapping_without_a_path() -> None:
    text = "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: {revision: main}}]"
    with pytest.raises(ConfigError, match="must have one of path and model"):
        parse(text, "r.yaml")


def test_a_density_of_zero_is_said(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("paddle_merge").propagate = True
    out = made(
        "base_model: c\nmodels: [{model: a}, {model: b}]\nmerge_method: dare_linear\nparameters: {weight: 1, density: 0}"
    )
    for name, values in read(here / "c").items():
        np.testing.assert_array_equal(out[name], values)
    assert any("density 0 keeps nothing of the models, so values are the base's" in message for message in caplog.messages)
