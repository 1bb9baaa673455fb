"""Test the recipes of post-training teams: expo, chat_vector, resta, warp, rewarded_soup, safe_merge.

The laws are in test_laws.py; what safe_merge has in common with other methods that need whole matrices is in
shared/test_whole_matrix.py.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paddle_merge import ConfigError, MergeConfig, merge
from paddle_merge.methods.safe_merge import cosine
from paddle_merge.methods.warp import along_arcs
from paddle_merge.recipe.request import Request
from tests.conversion.test_layout import llama, stored
from tests.support import oracle
from tests.support.checkpoints import read, write

BASE = np.array([1.0, -2.0, 0.5, 4.0])
FIRST = np.array([0.5, -0.25, 0.125, -1.0])
SECOND = np.array([-0.25, -0.75, 0.375, 0.5])


def merged(folder: Path, method: str, parameters: str, base: np.ndarray, *deltas: np.ndarray) -> np.ndarray:
    """What a recipe makes of one float64 tensor."""
    folder.mkdir(exist_ok=True)
    write(folder / "base", {"w": base}, "float64")
    listed = ""
    for number, delta in enumerate(deltas):
        listed += f"  - model: {write(folder / f'm{number}', {'w': base + delta}, 'float64')}\n"
    recipe = f"merge_method: {method}\nbase_model: {folder}/base\nmodels:\n{listed}parameters: {parameters}\n"
    merge(MergeConfig(recipe_yaml=recipe, output_path=str(folder / "out"), overwrite=True), progress=False)
    return read(folder / "out")["w"]


# --- by hand -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "parameters", "deltas", "expected"),
    [
        ("expo", "{alpha: 0.5}", [FIRST], [1.75, -2.375, 0.6875, 2.5]),  # 1.5 times the change
        ("expo", "{alpha: 0}", [FIRST], [1.5, -2.25, 0.625, 3.0]),  # the aligned model
        ("chat_vector", "{gamma: 0.5}", [FIRST, SECOND], [1.375, -2.625, 0.8125, 3.25]),
        ("chat_vector", "{}", [FIRST, SECOND], [1.25, -3.0, 1.0, 3.5]),
        ("resta", "{gamma: 0.5}", [FIRST, SECOND], [1.625, -1.875, 0.4375, 2.75]),
        ("resta", "{}", [FIRST, SECOND], [1.75, -1.5, 0.25, 2.5]),
        ("rewarded_soup", "{}", [FIRST, SECOND], [1.125, -2.5, 0.75, 3.75]),
        ("rewarded_soup", "{weight: 0.5}", [FIRST, SECOND], [1.125, -2.5, 0.75, 3.75]),
    ],
)
def test_sums_by_hand(tmp_path: Path, method: str, parameters: str, deltas: list[np.ndarray], expected: list[float]) -> None:
    assert merged(tmp_path, method, parameters, BASE, *deltas).tolist() == expected


def test_warp_of_vectors_at_right_angles(tmp_path: Path) -> None:
    """Of length 2 each: two give 2 sin 45 of each; the third, at 90 degrees to that, gets sin 30, the others' factor is
    multiplied by sin 60. The length stays 2, of which eta 0.5 leaves half."""
    deltas = 2.0 * np.eye(3)
    two = merged(tmp_path / "two", "warp", "{eta: 1}", np.zeros(3), *deltas[:2])
    np.testing.assert_allclose(two, [2**0.5, 2**0.5, 0], rtol=1e-15)
    three = merged(tmp_path / "three", "warp", "{eta: 0.5}", np.ones(3), *deltas)
    np.testing.assert_allclose(three, 1 + 0.5 * np.array([1.5**0.5, 1.5**0.5, 1]), rtol=1e-15)


def test_warp_is_nuslerp_of_two_then_toward_the_base(tmp_path: Path) -> None:
    arc = merged(tmp_path / "arc", "nuslerp", "{weight: 1}", BASE, FIRST, SECOND)
    got = merged(tmp_path / "warp", "warp", "{}", BASE, FIRST, SECOND)
    np.testing.assert_allclose(got, 0.7 * BASE + 0.3 * arc, rtol=1e-14)


@pytest.mark.parametrize("tau", [0.35, 0.59, 0.61, 0.9])
def test_safe_merge_by_hand(tmp_path: Path, tau: float) -> None:
    """Alignment changed what the first output gets: V V' d is the first row of d, (3, 0) of ((3, 0), (0, 4)): cosine 3/5."""
    base, d, d_safe = np.ones((2, 2)), np.array([[3.0, 0.0], [0.0, 4.0]]), np.array([[1.0, 1.0], [0.0, 0.0]])
    unaligned = -np.array([[0.0, 5.0], [0.0, 0.0]])
    got = merged(tmp_path, "safe_merge", f"{{tau: {tau}}}", base, d, d_safe, unaligned)
    expected = base + d if tau < 0.6 else base + np.array([[2.6, 0.2], [0.0, 3.2]])  # 0.8 d + 0.2 d_safe
    np.testing.assert_allclose(got, expected, rtol=1e-15)


def test_safe_merge_of_what_has_no_cosine(tmp_path: Path) -> None:
    """What alignment, or fine-tuning, didn't change counts as having left its directions, as in the authors' code; vectors
    stay fine-tuned."""
    base, d, zeros = np.ones((2, 2)), np.full((2, 2), 5.0), np.zeros((2, 2))
    np.testing.assert_allclose(merged(tmp_path / "v", "safe_merge", "{}", base, d, zeros, zeros), base + 4)
    np.testing.assert_allclose(merged(tmp_path / "d", "safe_merge", "{}", base, zeros, d, d), base + 1)
    assert (merged(tmp_path / "1-d", "safe_merge", "{tau: 1}", BASE, FIRST, SECOND, SECOND) == BASE + FIRST).all()
    assert (merged(tmp_path / "tau", "safe_merge", "{tau: 0}", base, d, zeros, zeros) == base + d).all()


def test_what_resta_drops(tmp_path: Path) -> None:
    """The first model's rate drops of what fine-tuning changed, the second one's of the safety vector; both are rescaled."""
    zeros = np.zeros(40_000)
    models = "".join(
        f"  - {{model: {write(tmp_path / name, {'w': zeros + value}, 'float64')}, parameters: {{drop_rate: {rate}}}}}\n"
        for name, value, rate in (("tuned", 1.0, 0.5), ("unaligned", -16.0, 0.2))
    )
    recipe = f"merge_method: resta\nbase_model: {write(tmp_path / 'base', {'w': zeros}, 'float64')}\nmodels:\n{models}"
    merge(MergeConfig(recipe_yaml=recipe, output_path=str(tmp_path / "out")), progress=False)
    values, counts = np.unique(read(tmp_path / "out")["w"], return_counts=True)
    assert values.tolist() == [0.0, 2.0, 20.0, 22.0]
    np.testing.assert_allclose(counts / zeros.size, [0.1, 0.1, 0.4, 0.4], atol=0.01)


# --- the formulas, implemented a second time -----------------------------------------------------------------------------


@pytest.mark.parametrize("models", [2, 3, 5])
def test_warp_is_what_the_oracle_makes(tmp_path: Path, models: int) -> None:
    generator = np.random.default_rng(0)
    for number, scale in enumerate((1.0, 1e-100, 1e200)):
        deltas = generator.standard_normal((models, 300)) * generator.uniform(0.5, 2, (models, 1)) * scale
        got = merged(tmp_path / str(number), "warp", "{eta: 0.7}", np.zeros(300), *deltas)
        np.testing.assert_allclose(got / scale, 0.7 * oracle.one_after_the_other(list(deltas / scale)), atol=1e-13)


@given(st.lists(st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0]), min_size=2, max_size=5))
def test_arcs_between_parallel_vectors_are_straight(lengths: list[float]) -> None:
    """Also where they are opposite, or cancel: all count 1 / models."""
    signs = np.sign(lengths)
    factors = along_arcs(np.abs(lengths), np.outer(signs, signs))
    np.testing.assert_allclose(factors, 1 / len(lengths), rtol=1e-12)


@given(st.integers(2, 6), st.integers(0, 2**32 - 1))
def test_arcs_keep_the_length_of_vectors_of_one_length(models: int, seed: int) -> None:
    vectors = np.random.default_rng(seed).standard_normal((models, 9))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    factors = along_arcs(np.ones(models), vectors @ vectors.T)
    np.testing.assert_allclose(np.linalg.norm(factors @ vectors), 1, rtol=1e-9)


MATRICES = st.tuples(
    st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.sampled_from([1e-200, 1.0, 1e200])
)


@given(MATRICES)
def test_the_cosine_is_the_oracles(given_matrices: tuple[int, int, int, float]) -> None:
    """For any shape, in either memory layout, to the bit between these; and whatever the scale."""
    outputs, inputs, seed, scale = given_matrices
    generator = np.random.default_rng(seed)
    v, d = generator.standard_normal((2, outputs, inputs))
    expected = oracle.alignment_cosine(v, 0 * v, v + d)
    got = cosine(v, scale * d)
    assert got == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert got == cosine(np.asfortranarray(v), np.asfortranarray(scale * d))
    assert got == cosine(v * 2.0**300, scale * d)


@pytest.mark.parametrize("step", [1, 5000])
@pytest.mark.parametrize("shape", [(70, 300), (300, 70)])
def test_the_cosine_in_parts(shape: tuple[int, int], step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paddle_merge.methods.safe_merge._STEP", step)
    v, d = np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32)
    expected = oracle.alignment_cosine(v.astype(float), 0.0 * v, v.astype(float) + d)
    assert cosine(v, d) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("shape", [(33, 65), (90, 17), (12, 12), (1, 40), (7, 1)])
def test_safe_merge_is_what_the_oracle_makes(tmp_path: Path, shape: tuple[int, int]) -> None:
    generator = np.random.default_rng(0)
    base, *deltas = generator.standard_normal((4, *shape))
    others = [base + delta for delta in deltas]
    known = oracle.alignment_cosine(base, others[2], others[0])
    for number, tau in enumerate((0.0, known - 0.01, known + 0.01, 1.0)):
        tau = min(1.0, max(0.0, tau))
        got = merged(tmp_path / str(number), "safe_merge", f"{{tau: {tau}, alpha: 0.6}}", base, *deltas)
        np.testing.assert_allclose(got, oracle.safe_merge(base, *others, tau, 0.6), rtol=1e-12)


# --- roles, flags and mistakes -------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a base and three models, a, b and c."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("base", "a", "b", "c")):
        write(tmp_path / name, {"w": np.random.default_rng(number).standard_normal((6, 5))})
    return tmp_path


FLAGS: dict[str, tuple[str, dict[str, Any], str]] = {  # models, flags and the recipe's parameters
    "expo": ("a", {"method_parameters": ["alpha=0.5"]}, "{alpha: 0.5}"),
    "chat_vector": ("ab", {"method_parameters": ["gamma=0.5"]}, "{gamma: 0.5}"),
    "resta": ("ab", {"method_parameters": ["drop_rate=0.3"], "seed": 5}, "{drop_rate: 0.3}"),
    "warp": ("abc", {"method_parameters": ["eta=0.5"]}, "{eta: 0.5}"),
    "rewarded_soup": ("ab", {"weight_list": [0.5, 0.5]}, "{weight: 0.5}"),
    "safe_merge": ("abc", {"method_parameters": ["tau=0.9", "alpha=0.7"]}, "{tau: 0.9, alpha: 0.7}"),
}


@pytest.mark.parametrize("method", FLAGS)
def test_flags_and_recipes_make_the_same(here: Path, method: str) -> None:
    models, flags, parameters = FLAGS[method]
    config = MergeConfig(merge_method=method, model_path_list=list(models), base_model_path="base", **flags)
    config.output_path = "flags"
    merge(config, progress=False)
    listed = "".join(f"  - model: {name}\n" for name in models)
    recipe = f"merge_method: {method}\nbase_model: base\nmodels:\n{listed}parameters: {parameters}\n"
    merge(MergeConfig(recipe_yaml=recipe, output_path="recipe", seed=flags.get("seed")), progress=False)
    made = [Path(out, "model.safetensors").read_bytes() for out in ("flags", "recipe")]
    assert made[0] == made[1]
    again = MergeConfig.from_mapping(MergeConfig.from_file("flags/merge_config.json"))
    again.output_path = "again"
    merge(again, progress=False)
    assert Path("again/model.safetensors").read_bytes() == made[0]


def test_a_rewarded_soup_without_weights_is_uniform(here: Path) -> None:
    """By flags and in recipes, with the base model and without; a base model isn't one of the models."""
    made = []
    for number, base in enumerate((None, "base")):
        config = MergeConfig(merge_method="rewarded_soup", model_path_list=["a", "b", "c"], base_model_path=base)
        config.output_path = f"out{number}"
        merge(config, progress=False)
        made.append(read(Path(config.output_path))["w"])
    mean = np.mean([read(Path(name))["w"] for name in "abc"], axis=0)
    for got in made:
        np.testing.assert_allclose(got, mean, rtol=1e-5, atol=1e-6)
    recipe = "merge_method: rewarded_soup\nmodels: [{model: a}, {model: b}, {model: c}]\n"
    assert Request.of(MergeConfig(recipe_yaml=recipe)).checked_recipe().settings == {}


def test_thirds_are_on_the_simplex(tmp_path: Path) -> None:
    """0.3333 three times: divided by their sum, so that equal models give the model."""
    got = merged(tmp_path, "rewarded_soup", "{weight: 0.3333}", BASE, FIRST, FIRST, FIRST)
    np.testing.assert_allclose(got, BASE + FIRST, rtol=1e-15)


@pytest.mark.parametrize(
    ("method", "models", "lines"),
    [
        (
            "expo",
            "a",
            ["model    1.3      x a (the aligned model)", "base     base (the SFT model that alignment began with)"],
        ),
        (
            "resta",
            "ab",
            ["model    1        x a (the model fine-tuned from it)", "model    -1       x b (the unaligned model)"],
        ),
        ("chat_vector", "ab", ["x a (the model that is to learn to chat)", "x b (the chat model)"]),
        (
            "safe_merge",
            "abc",
            ["x b (the safe model trained from it)", "x c (the unaligned model)", "base (the aligned model)"],
        ),
    ],
)
def test_the_plan_says_which_model_is_which(
    here: Path, method: str, models: str, lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    config = MergeConfig(merge_method=method, model_path_list=list(models), base_model_path="base", output_path="out")
    config.dry_run = True
    merge(config)
    said = capsys.readouterr()
    assert [line for line in lines if line not in said.out + said.err] == []


@pytest.mark.parametrize(
    ("method", "models", "fields", "said"),
    [
        (
            "expo",
            "ab",
            {},
            "expo takes 1 model, not 2: the aligned model; the base model is the SFT model that alignment began",
        ),
        ("expo", "a", {"base_model_path": None}, "expo needs --base_model_path, the SFT model that alignment began with"),
        ("expo", "a", {"method_parameters": ["alpha=-0.1"]}, "--method_parameters alpha -0.1 is how far to go beyond the"),
        ("chat_vector", "a", {}, "takes 2 models, not 1: the model that is to learn to chat, then the chat model; the base"),
        ("chat_vector", "ab", {"method_parameters": ["gamma=-1"]}, "--method_parameters gamma -1 must not be negative"),
        ("resta", "ab", {"method_parameters": ["gamma=-1"]}, "gamma -1 must not be negative: it would take safety away"),
        ("resta", "ab", {"method_parameters": ["drop_rate=1"]}, "drop_rate 1 1 is the share of elements to drop: from 0 to"),
        ("warp", "a", {}, "warp takes 2 or more models, not 1"),
        ("warp", "ab", {"method_parameters": ["eta=-0.3"]}, "eta -0.3 must not be negative"),
        ("rewarded_soup", "ab", {"weight_list": [0.5, 0.4]}, "--weight_list 0.5 0.4 (sum 0.9) must add up to 1"),
        ("rewarded_soup", "ab", {"weight_list": [1.5, -0.5]}, "--weight_list 1.5 -0.5 must not be negative"),
        ("rewarded_soup", "ab", {"weight_list": [0.0, 0.0]}, "--weight_list 0 0 (sum 0) must add up to 1"),
        (
            "safe_merge",
            "ab",
            {},
            "safe_merge takes 3 models, not 2: the model fine-tuned from it, then the safe model trained",
        ),
        ("safe_merge", "abc", {"method_parameters": ["tau=1.1"]}, "tau 1.1 is the cosine below which a matrix is mixed"),
        (
            "safe_merge",
            "abc",
            {"method_parameters": ["alpha=2"]},
            "alpha 2 is the fine-tuned model's share of a mixed matrix",
        ),
    ],
)
def test_mistakes_are_named(here: Path, method: str, models: str, fields: dict[str, Any], said: str) -> None:
    given_fields = {"base_model_path": "base", **fields}
    config = MergeConfig(merge_method=method, model_path_list=list(models), output_path="out", **given_fields)
    with pytest.raises(ConfigError, match=re.escape(said)):
        merge(config, progress=False)
    assert not Path("out").exists()


def test_weights_of_some_models_only(here: Path) -> None:
    recipe = "merge_method: rewarded_soup\nmodels: [{model: a, parameters: {weight: 0.5}}, {model: b}]\n"
    with pytest.raises(ConfigError, match=r"'weight' 0\.5: give every model one, or none of them"):
        merge(MergeConfig(recipe_yaml=recipe, output_path="out"), progress=False)


def test_a_recipe_without_the_base_says_which_it_is(here: Path) -> None:
    recipe = "merge_method: resta\nmodels: [{model: a}, {model: b}]\n"
    with pytest.raises(ConfigError, match=r"resta needs base_model \(the aligned model\), which is missing"):
        merge(MergeConfig(recipe_yaml=recipe, output_path="out"), progress=False)


def test_numbers_that_are_not_finite_have_no_angle() -> None:
    """With float32 storage squares of finite numbers stay finite, so NaN and Inf alone lead here."""
    from paddle_merge.methods.shared.angles import Angles
    from paddle_merge.methods.warp import Warp

    found = Angles(np.array([[math.nan], [1.0]]), np.zeros((2, 2, 1)))
    assert Warp().factors(found).tolist() == [[0.5], [0.5]]


def test_a_chat_vector_keeps_the_rows_of_the_targets_own_tokens(here: Path) -> None:
    """With the target's tokenizer, tokens that neither base nor chat model has are in no difference."""
    import yaml

    from tools.compare_with_mergekit import by_word, load
    from tools.try_recipes import models

    recipe = (
        "merge_method: chat_vector\nbase_model: ./base\nmodels: [{model: ./language}, {model: ./chat}]\n"
        "tokenizer: {source: ./language}\ndtype: bfloat16\n"
    )
    models(list(yaml.safe_load_all(recipe)), here / "models")
    (here / "models/r.yaml").write_text(recipe.replace("./", f"{here}/models/"))
    merge(MergeConfig(recipe_yaml=str(here / "models/r.yaml"), output_path="out"), progress=False)
    folders = {"out": here / "out"} | {name: here / "models" / name for name in ("base", "language", "chat")}
    rows = {name: by_word(folder, load(folder))["model.embed_tokens.weight"] for name, folder in folders.items()}
    own = rows["language"].keys() - rows["base"].keys() - rows["chat"].keys()
    assert own
    assert rows["out"].keys() == rows["language"].keys()
    for word in own:
        assert (rows["out"][word] == rows["language"][word]).all()
    for word in rows["base"].keys() & rows["out"].keys():
        expected = rows["language"][word] + rows["chat"][word] - rows["base"][word]
        np.testing.assert_allclose(rows["out"][word], expected, atol=0.02)


# --- the plan ----------------------------------------------------------------------------------------------------------


def test_the_plan_of_slices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The bases of slices are named; roles only if no slice swaps the models."""
    for name, seed in (("base", 0), ("a", 1), ("b", 2)):
        stored(tmp_path / name, llama(seed), "hf", dtype="float32")

    def said(*orders: str) -> str:
        recipe = "merge_method: chat_vector\nslices:\n"
        for number, order in enumerate(orders):
            recipe += f"  - base_model: {tmp_path}/base\n    sources:\n"
            for name in order:
                recipe += f"      - {{model: {tmp_path}/{name}, layer_range: [{number}, {number + 1}]}}\n"
        merge(MergeConfig(recipe_yaml=recipe, output_path=str(tmp_path / "out"), dry_run=True), progress=False)
        return capsys.readouterr().out

    same, swapped = said("ab", "ab"), said("ab", "ba")
    for text in (same, swapped):
        assert f"base     {tmp_path}/base (" in text
    assert "(the chat model)" in same
    assert "(the chat model)" not in swapped


def test_a_model_in_two_roles(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By flags, under two spellings, and as its own base; not for methods whose models are alike."""
    base, a = (write(tmp_path / name, {"w": BASE}, "float64") for name in ("base", "a"))
    fields = {"base_model_path": base, "output_path": str(tmp_path / "out"), "dry_run": True}

    def said(method: str, *models: str) -> str:
        caplog.clear()
        merge(MergeConfig(merge_method=method, model_path_list=[str(one) for one in models], **fields), progress=False)
        return caplog.text

    assert "is given as the model fine-tuned from it and as the unaligned model; is that meant?" in said("resta", a, a)
    assert "as the unaligned model; is that meant?" in said("resta", a, f"{a}/../a")
    assert "as the chat model and as the pretrained model" in said("chat_vector", a, f"{base}/../base")
    assert "is that meant" not in said("resta", a, write(tmp_path / "b", {"w": BASE}, "float64"))
    assert "is that meant" not in said("warp", a, f"{a}/../a")


def test_safe_merge_says_which_tensors_it_does_not_compare(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tensors = {"experts": np.ones((2, 3, 3)), "w": np.ones((3, 3)), "norm": np.ones(3)}
    base, *models = (str(write(tmp_path / name, tensors, "float32")) for name in "bacd")
    fields = {"base_model_path": base, "output_path": str(tmp_path / "out"), "dry_run": True}
    merge(MergeConfig(merge_method="safe_merge", model_path_list=models, **fields), progress=False)
    assert (
        "tensor 'experts': of more than two axes, so safe_merge leaves them as they are in the model fine-tuned"
        in caplog.text
    )
    assert "'norm'" not in caplog.text
