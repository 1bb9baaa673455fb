"""Test layer paths: their genes, their recipes and what these make, families in which scales are exact, and searches."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from paddle_merge import CheckpointError, ConfigError, MergeConfig, merge
from paddle_merge.recipe.yaml_read import parse
from paddle_merge.recipe.yaml_write import to_yaml
from paddle_merge.search.asked import Asked
from paddle_merge.search.candidates import MergedCandidate
from paddle_merge.search.contract import Candidate, Scores
from paddle_merge.search.evolve import evolve
from paddle_merge.search.gene import Values
from paddle_merge.search.merger import Merger
from paddle_merge.search.paths import PathSpace
from paddle_merge.search.residual import FAMILIES, REASONS, writers
from paddle_merge.search.spaces import FIRST, THEN, space_of
from tests.support.checkpoints import read, write

WORDS = ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
OUTSIDE = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")


def name(layer: int, word: str) -> str:
    return f"model.layers.{layer}.{word}.weight"


def make(folder: Path, seed: int, layers: int = 3, **config: Any) -> None:
    generator = np.random.default_rng(seed)
    tensors = {one: generator.standard_normal((4,) if "norm" in one else (7, 4)) for one in OUTSIDE}
    tensors |= {name(layer, word): generator.standard_normal((4, 4)) for layer in range(layers) for word in WORDS}
    write(
        folder, tensors, "float32", config={"model_type": "llama", "num_hidden_layers": layers, "hidden_size": 4, **config}
    )


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for seed, folder in enumerate("ab"):
        make(tmp_path / folder, seed)
    make(tmp_path / "deep", 5, layers=4)
    return tmp_path


def space(text: str, phase: str = "", fixed: Values = ()) -> PathSpace:
    found = space_of(text, "search.yaml", Merger(), phase, fixed)
    assert isinstance(found, PathSpace)
    return found


def mistakes(text: str) -> list[str]:
    with pytest.raises((ConfigError, CheckpointError)) as caught:
        space(text)
    return caught.value.problems


# --- genes and recipes -------------------------------------------------------------------------------------------------


def test_genes(here: Path) -> None:
    """Three layers of a and four of deep, twice: 14 switches, and as many factors, each of which needs its switch."""
    found = space("paths: {models: [./a, ./deep], repeats: 2, scales: [0.5, 2]}\n")
    keeps, scales = found.genes[:14], found.genes[14:]
    assert [gene.choices for gene in keeps] == [(True, False)] * 14
    assert [gene.start for gene in keeps] == [True] * 3 + [False] * 11
    assert [gene.layer for gene in keeps] == [0, 1, 2, 0, 1, 2, 3] * 2
    assert keeps[0].likely == 1 - 2 / 14
    assert [(gene.low, gene.high, gene.log, gene.start) for gene in scales] == [(0.5, 2.0, True, 1.0)] * 14
    assert [gene.needs for gene in scales] == list(range(14))
    assert keeps[13].name == "./deep, turn 1: layer 3"
    assert scales[13].name == "./deep, turn 1: scale before layer 3"
    own = ([True] * 3 + [False] * 11, [False] * 3 + [True] * 4 + [False] * 7)
    assert found.first == [(*keep, *[1.0] * 14) for keep in own]
    assert len(space("paths: {models: [./a]}\n").genes) == 3


def test_the_recipe_of_a_path_by_hand(here: Path) -> None:
    """Kept: b0 (factor 0.5), a2 (4), b1 and b2 (0.25, then 1). In them the stream is 0.5, 2, 0.5 and 0.5 times as large."""
    found = space("dtype: bfloat16\npaths: {models: [./a, ./b], repeats: 2, scales: [0.25, 4]}\n")
    keeps = [place in (3, 8, 10, 11) for place in range(12)]
    scales = dict(zip((3, 8, 10, 11), (0.5, 4.0, 0.25, 1.0), strict=True))
    recipe = found.recipe((*keeps, *(scales.get(place, 3.0) for place in range(12))))

    def slice_(model: str, first: int, end: int, factor: float | None = None) -> dict[str, Any]:
        source: dict[str, Any] = {"model": model, "layer_range": [first, end]}
        if factor is not None:
            source["parameters"] = {"scale": [{"filter": word, "value": factor} for word in ("o_proj", "down_proj")]}
        return {"sources": [source]}

    assert yaml.safe_load(to_yaml(recipe)) == {
        "merge_method": "passthrough",
        "base_model": "./a",
        "slices": [
            slice_("./a", 0, 0),
            slice_("./b", 0, 1, 2.0),
            slice_("./a", 2, 3, 0.5),
            slice_("./b", 1, 3, 2.0),
            slice_("./a", 0, 0),
        ],
        "out_dtype": "bfloat16",
    }
    assert to_yaml(parse(to_yaml(recipe), "r").recipe) == to_yaml(recipe)


def test_what_a_path_makes(here: Path) -> None:
    """In memory and on disk the same, with config.json's number of layers."""
    found = space("paths: {models: [./a, ./b], scales: [0.25, 4]}\n")
    recipe = found.recipe((True, False, True, False, True, True, 2.0, 1.0, 1.0, 1.0, 2.0, 1.0))
    merge(MergeConfig(recipe_yaml=to_yaml(recipe), output_path="out"), progress=False)
    out, a, b = (read(here / folder) for folder in ("out", "a", "b"))
    expected = {one: a[one] for one in OUTSIDE}
    for layer, (source, its, factor) in enumerate([(a, 0, 2.0), (a, 2, 2.0), (b, 1, 4.0), (b, 2, 4.0)]):
        expected |= {name(layer, word): source[name(its, word)] for word in WORDS}
        expected |= {
            name(layer, word): expected[name(layer, word)] / factor for word in ("self_attn.o_proj", "mlp.down_proj")
        }
    assert out.keys() == expected.keys()
    for one, value in expected.items():
        np.testing.assert_array_equal(out[one], value, err_msg=one)
    assert json.loads((here / "out/config.json").read_text())["num_hidden_layers"] == 4
    candidate = MergedCandidate("candidate 0", recipe, Merger(), str(here))
    assert candidate.config["num_hidden_layers"] == 4
    held = candidate.state_dict()
    assert all((held[one] == value).all() for one, value in expected.items())


def test_a_models_own_path_is_the_model(here: Path) -> None:
    found = space("paths: {models: [./a, ./b], repeats: 2, scales: [0.5, 2]}\n")
    a, b = (read(here / folder) for folder in "ab")
    own, other = (
        {one: value.values for one, value in Merger().merge(found.recipe(values)).items()} for values in found.first
    )
    assert own.keys() == a.keys()
    assert all((own[one] == a[one]).all() for one in a)
    assert all((other[one] == (a if one in OUTSIDE else b)[one]).all() for one in a)


def test_tied_models(here: Path) -> None:
    """lm_head is the first model's embedding, whatever layers a path has."""
    for seed, folder in enumerate("ab"):
        make(here / folder, seed, tie_word_embeddings=True)
        held = {one: value for one, value in read(here / folder).items() if one != "lm_head.weight"}
        write(here / folder, held, "float32", config=json.loads((here / folder / "config.json").read_text()))
    recipe = space("paths: {models: [./a, ./b], scales: [0.5, 2]}\n").recipe((*[False] * 3, True, False, True, *[2.0] * 6))
    merge(MergeConfig(recipe_yaml=to_yaml(recipe), output_path="out"), progress=False)
    out, a = read(here / "out"), read(here / "a")
    assert set(out) - {name(layer, word) for layer in (0, 1) for word in WORDS} == set(OUTSIDE) - {"lm_head.weight"}
    assert (out["model.embed_tokens.weight"] == a["model.embed_tokens.weight"]).all()
    assert json.loads((here / "out/config.json").read_text())["tie_word_embeddings"] is True


def test_a_path_keeps_a_layer(here: Path) -> None:
    found = space("paths: {models: [./a]}\n")
    with pytest.raises(ConfigError, match="keeps no layer"):
        found.recipe((False, False, False))


def test_inputs_are_opened_once(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever layers a path takes. A path without b's layers has fewer inputs, and so is another case."""
    from paddle_merge.search import merger as module

    opened = []
    matched = module.matched
    monkeypatch.setattr(module, "matched", lambda recipe: opened.append(recipe) or matched(recipe))
    merger = Merger()
    found = space_of("paths: {models: [./a, ./b]}\n", "search.yaml", merger)
    for bits in range(1, 64):
        merger.merge(found.recipe(tuple(bool(bits >> place & 1) for place in range(6))))
    assert len(opened) <= 3


def test_earlier_merges_are_made_once_while_they_stay_the_same(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tensors of the merge of a and b that a path takes, and again after its weights changed."""
    made: list[str] = []
    whole = Merger._merged
    monkeypatch.setattr(Merger, "_merged", lambda self, plan, out: made.append(plan.name) or whole(self, plan, out))
    text = """
name: both
merge_method: linear
models: [{model: ./a, parameters: {weight: {search: [0, 1]}}}, {model: ./b, parameters: {weight: 1}}]
---
paths: {models: [both, ./deep], repeats: 2}
"""
    merger, count = Merger(memory=1 << 20), len(WORDS)
    found = space_of(text, "search.yaml", merger)
    fresh = space_of(text, "search.yaml", Merger())
    path = (True, True, False, *[False] * 3, True)  # layers 0 and 1 of both, and 3 of deep; then 0 of both again
    again = (True, *[False] * 6)
    for weight, path_, staged in (
        (0.5, path, 2 * count + 3),
        (0.5, path, 0),
        (0.5, (True,) * 3 + path[3:], count),
        (0.25, path, 2 * count + 3),
    ):
        made.clear()
        recipe = found.recipe((weight, *path_, *again))
        out = merger.merge(recipe)
        assert len(made) == len(out) + staged
        expected = Merger().merge(fresh.recipe((weight, *path_, *again)))
        assert all((out[one].raw == expected[one].raw).all() for one in expected)


def test_parameters_and_paths_together(here: Path) -> None:
    """A document with a free weight, whose merge is a model of the path."""
    text = """
name: both
merge_method: linear
models: [{model: ./a, parameters: {weight: {search: [0, 1]}}}, {model: ./b, parameters: {weight: 1}}]
---
paths: {models: [both, ./deep]}
"""
    found = space(text)
    assert [gene.name for gene in found.genes[:2]] == ["./a: weight", "both: layer 0"]
    assert len(found.genes) == 1 + 3 + 4
    recipe = found.recipe((0.25, False, True, False, *[False] * 3, True))
    out, a, b, deep = Merger().merge(recipe), *(read(here / folder) for folder in ("a", "b", "deep"))
    both = {one: (0.25 * a[one].astype(np.float64) + b[one]) / 1.25 for one in a}
    for word in WORDS:
        np.testing.assert_allclose(out[name(0, word)].values, both[name(1, word)], rtol=1e-6)
        assert (out[name(1, word)].values == deep[name(3, word)]).all()
    for one in OUTSIDE:
        np.testing.assert_allclose(out[one].values, both[one], rtol=1e-6)
    documents = list(yaml.safe_load_all(to_yaml(recipe)))
    assert [document.get("name") for document in documents] == ["both", None]


def test_values_by_layer_are_of_the_merged_layers(here: Path) -> None:
    """Three layers of a and b, whichever layers a path has."""
    text = """
name: both
merge_method: linear
models: [{model: ./a, parameters: {weight: {search: [0, 1], by: layer}}}, {model: ./b, parameters: {weight: 1}}]
---
paths: {models: [both, ./deep]}
"""
    found = space(text)
    assert [gene.name for gene in found.genes[:4]] == [
        *(f"./a: weight, layer {layer}" for layer in range(3)),
        "both: layer 0",
    ]
    recipe = found.recipe((0.0, 0.25, 1.0, False, True, False, *[False] * 3, True))
    out, a, b = Merger().merge(recipe), read(here / "a"), read(here / "b")
    for word in WORDS:
        both = (0.25 * a[name(1, word)].astype(np.float64) + b[name(1, word)]) / 1.25
        np.testing.assert_allclose(out[name(0, word)].values, both, rtol=1e-6)


def test_the_first_model_may_be_a_merge_with_a_base(here: Path) -> None:
    """config.json comes from the base of the merge."""
    make(here / "base", 9, rope_theta=5.0)
    text = """
name: both
merge_method: task_arithmetic
base_model: ./base
models: [{model: ./a, parameters: {weight: 1}}]
---
paths: {models: [both, ./b]}
"""
    recipe = space(text).recipe((True, False, False, False, True, False))
    assert recipe.base == "./base"
    assert Merger().config(recipe)["rope_theta"] == 5.0


# --- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("paths: {}", "search.yaml:1:8: paths needs models"),
        ("paths: {models: []}", "search.yaml:1:17: models is empty"),
        ("paths: {models: [./a, ./a]}", "./a stands twice; repeats: 2 offers all layers twice"),
        ("paths: {models: [./a], repeats: 0}", "search.yaml:1:33: repeats must be a whole number of at least 1, not 0"),
        ("paths: {models: [./a], repeats: 9999}", "29,997 layers, of which a path may have 10,000"),
        ("paths: {models: [./a], scales: [2, 1]}", "low must be below high"),
        ("paths: {models: [./a], scales: [0, 1]}", "scales must be above 0, and not 0"),
        ("paths: {models: [./a], scales: [1.5, 2]}", "must include 1"),
        ("paths: {models: [./a], scales: 2}", "scales must be a list"),
        ("paths: {models: [./a], scale: [1, 2]}", "unknown key 'scale'; did you mean 'scales'?"),
        ("paths: {models: [./a]}\nmerge_method: linear", "search.yaml:2:15: paths are of passthrough, not of 'linear'"),
        ("paths: {models: [./a]}\nslices: []", "search.yaml:2:1: give one of paths and slices, not both"),
        ("paths: {models: [./a]}\n---\npaths: {models: [./b]}", "search.yaml:3:8: a second document with paths"),
        ("paths: {models: [./nowhere]}", "nowhere"),
        (
            "name: path\npaths: {models: [./a]}\n---\nmerge_method: linear\nmodels: [{model: path}, {model: ./b}]\n"
            "parameters: {weight: 1}",
            "search.yaml:2:8: paths are of the merge that a file is for: the last one, or the one without a name",
        ),
        ("name: path\npaths: {models: [./a]}\n---\nmerge_method: linear\nmodels: [./b]", "search.yaml:2:8: paths are of"),
    ],
)
def test_mistakes(here: Path, text: str, words: str) -> None:
    assert words in "\n".join(mistakes(text + "\n"))


def test_layers_of_another_kind_are_refused(here: Path) -> None:
    tensors = {name(layer, word): np.zeros((4, 2) if "up" in word else (4, 4)) for layer in range(3) for word in WORDS}
    tensors |= dict.fromkeys(OUTSIDE, np.zeros((7, 4))) | {"model.layers.1.self_attn.q_proj.bias": np.zeros(4)}
    write(here / "other", tensors, "float32", config={"model_type": "llama"})
    (problem,) = mistakes("paths: {models: [./a, ./b, ./other]}\n")
    assert problem == (
        "search.yaml:1:8: the layers of ./other can't stand among those of ./a: 'model.layers.*.mlp.up_proj.weight' is"
        " [4, 2], and is [4, 4] there (and 1 more differ)"
    )


def test_families_in_which_scales_are_not_exact(here: Path) -> None:
    for family in ("gemma2", "olmo2", "bert", "kimi", ""):
        make(here / "other", 3, model_type=family)
        (problem,) = mistakes("paths: {models: [./other], scales: [0.5, 2]}\n")
        assert "search.yaml:1:8: scales of ./other can't be folded into its layers: " in problem
        assert REASONS.get(family, "it isn't known whether that is exact") in problem
        assert len(space("paths: {models: [./other]}\n").genes) == 3  # without scales there is nothing to fold


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tensors_of_a_family(family: str) -> None:
    """Each filter matches what adds to the stream, and nothing else; a tensor that nobody knows is refused by name."""
    usual = {
        "gpt2": ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj", "ln_1", "ln_2"),
        "gpt_bigcode": ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
        "gpt_neox": ("attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
        "bloom": ("self_attention.query_key_value", "self_attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
        "falcon": ("self_attention.query_key_value", "self_attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
        "phi": ("self_attn.q_proj", "self_attn.dense", "mlp.fc1", "mlp.fc2"),
        "opt": ("self_attn.q_proj", "self_attn.out_proj", "fc1", "fc2"),
        "starcoder2": ("self_attn.q_proj", "self_attn.o_proj", "mlp.c_fc", "mlp.c_proj"),
        "phimoe": ("self_attn.o_proj", "block_sparse_moe.experts.3.w3", "block_sparse_moe.experts.3.w2"),
        "mixtral": ("self_attn.o_proj", "block_sparse_moe.experts.3.w1", "block_sparse_moe.experts.3.w2"),
        "granitemoe": ("self_attn.o_proj", "block_sparse_moe.input_linear", "block_sparse_moe.output_linear"),
        "granitemoeshared": ("self_attn.o_proj", "shared_mlp.input_linear", "shared_mlp.output_linear"),
    }
    adds = re.compile(r"\.(c_proj|dense|dense_4h_to_h|fc2|out_proj|o_proj|down_proj|w2|output_linear)\.")
    names = [f"model.layers.0.{word}.{kind}" for word in usual.get(family, WORDS) for kind in ("weight", "bias")]
    found = writers({"model_type": family}, names)
    assert [one for one in names if any(filter in one for filter in found)] == [one for one in names if adds.search(one)]
    with pytest.raises(ValueError, match=r"isn't known whether 'model.layers.0.adapter.out.weight'"):
        writers({"model_type": family}, [*names, "model.layers.0.adapter.out.weight"])
    with pytest.raises(ValueError, match=r"no tensor of model\.layers\.0 has"):
        writers({"model_type": family}, [one for one in names if not adds.search(one)])


def test_settings_without_which_a_family_is_not_exact(here: Path) -> None:
    names = [f"model.decoder.layers.0.{word}.weight" for word in ("self_attn.out_proj", "fc2")]
    assert writers({"model_type": "opt", "do_layer_norm_before": True}, names)
    with pytest.raises(
        ValueError, match=r"do_layer_norm_before: False in config\.json, its layers normalise the stream itself"
    ):
        writers({"model_type": "opt", "do_layer_norm_before": False}, names)
    make(here / "more", 3, layers=4, num_hidden_layers=3)
    (problem,) = mistakes("paths: {models: [./more], scales: [0.5, 2]}\n")
    assert "it has 4 layers, and 3 in config.json" in problem


def test_doubts_are_noted(here: Path) -> None:
    make(here / "other", 3, rope_theta=5.0)
    make(here / "a", 0, rope_theta=7.0)
    assert space("paths: {models: [./a, ./other]}\n").notes == [
        "./other was trained with rope_theta 5.0 (not 7.0): the output gets config.json from ./a"
    ]


# --- searches ----------------------------------------------------------------------------------------------------------

SEARCH = "search:\n  evaluate: {python: 'nothing:nothing'}\n  objectives: {loss: minimize}\n"


class Distance:
    """Measures how far a candidate is from a target: layers that are there or missing, and what they hold."""

    metrics = ("loss",)

    def __init__(self, target: dict[str, np.ndarray]):
        self._target, self.calls = target, 0

    def count(self, split: str) -> None:
        return None

    def __call__(self, candidate: Candidate, split: str, seed: int, samples: Any) -> dict[str, float]:
        from paddle_merge.search.contract import Scores

        self.calls += 1
        held = candidate.state_dict()
        both = held.keys() & self._target.keys()
        apart = len(held.keys() ^ self._target.keys())
        size = sum(float(((held[one] - self._target[one]) ** 2).mean()) for one in both)
        return Scores({"loss": size + 2.0 * apart})  # type: ignore[return-value]


def target(here: Path, path: list[tuple[str, int, float]]) -> dict[str, np.ndarray]:
    a = read(here / "a")
    found = {one: a[one] for one in OUTSIDE}
    for layer, (folder, its, factor) in enumerate(path):
        held = read(here / folder)
        for word in WORDS:
            scale = factor if word in ("self_attn.o_proj", "mlp.down_proj") else 1.0
            found[name(layer, word)] = held[name(its, word)] / scale
    return found


@pytest.mark.exhaustive
def test_a_search_finds_a_path(here: Path) -> None:
    """a0, b1 and b2, with factors 1, 0.5 and 1.6."""
    wanted = target(here, [("a", 0, 1.0), ("b", 1, 0.5), ("b", 2, 0.8)])
    (here / "search.yaml").write_text(
        f"paths: {{models: [./a, ./b], scales: [0.25, 4]}}\n{SEARCH}  evaluations: 180\n  population: 15\n  seed: 1\n"
    )
    outcome = evolve(Asked("search.yaml", "best", evaluator=Distance(wanted)), progress=False)  # type: ignore[arg-type]
    assert outcome.optimizer == "cat_cma"
    assert [one.title for one in outcome.baselines] == ["./a", "./b", "the layers of ./a", "the layers of ./b"]
    assert outcome.candidates[0].values == outcome.baselines[2].values
    assert outcome.best.known.metrics["loss"] < 0.02
    out = read(here / "best")
    assert out.keys() == wanted.keys()
    assert (out[name(1, "self_attn.q_proj")] == wanted[name(1, "self_attn.q_proj")]).all()
    np.testing.assert_allclose(out[name(2, "mlp.down_proj")], wanted[name(2, "mlp.down_proj")], rtol=0.25)
    merge(MergeConfig(recipe_yaml="best/best.yaml", output_path="again"), progress=False)
    again = read(here / "again")
    assert all((again[one] == out[one]).all() for one in out)


TWO = f"""
name: both
merge_method: linear
models: [{{model: ./a, parameters: {{weight: {{search: [0, 1]}}}}}}, {{model: ./b, parameters: {{weight: 0.5}}}}]
---
paths: {{models: [both, ./deep], scales: [0.5, 2]}}
---
{SEARCH}  evaluations: 24
  population: 8
  optimizer: cma
  then: {{evaluations: 72, population: 12}}
"""


@pytest.mark.exhaustive
def test_parameters_first_and_then_paths(here: Path) -> None:
    """The first part finds both parts' mean of a and b at weight 0.5; the second one drops its layer 1 and adds deep's 3."""
    a, b, deep = (read(here / folder) for folder in ("a", "b", "deep"))
    mean = {one: (a[one] + b[one]) / 2 for one in a}
    wanted = {one: mean[one] for one in OUTSIDE}
    for layer, (held, its) in enumerate([(mean, 0), (mean, 2), (deep, 3)]):
        wanted |= {name(layer, word): held[name(its, word)] for word in WORDS}
    (here / "search.yaml").write_text(TWO)
    evaluator = Distance(wanted)
    outcome = evolve(Asked("search.yaml", "best", evaluator=evaluator), progress=False)  # type: ignore[arg-type]
    first = outcome.first
    assert first is not None
    assert (first.optimizer, outcome.optimizer) == ("cma", "cat_cma")
    assert len(first.candidates) == 24
    assert len(outcome.candidates) == 72
    assert outcome.best.known.metrics["loss"] < first.best.known.metrics["loss"]
    assert [one.title for one in outcome.baselines] == ["./a", "./b", "./deep", "the layers of both", "the layers of ./deep"]
    report = json.loads((here / "best/report.json").read_text())
    assert report["first"]["candidates"] == 24
    documents = list(yaml.safe_load_all((here / "best/best.yaml").read_text()))
    assert [document.get("name") for document in documents] == ["both", None]
    weight = documents[0]["models"][0]["parameters"]["weight"]
    assert weight == first.best.values[0]
    phases = {json.loads(line).get("phase") for line in (here / "best/journal.jsonl").read_text().splitlines()[1:]}
    assert phases == {"first search", "first final", "first baselines", "search", "final", "baselines"}

    # Stopped anywhere, it goes on to the same result, and scores only what is missing.
    lines = (here / "best/journal.jsonl").read_text().splitlines()
    for kept in (9, 60):
        folder = here / f"resumed{kept}"
        folder.mkdir()
        (folder / "journal.jsonl").write_text("\n".join(lines[:kept]) + "\n")
        again = Distance(wanted)
        evolve(Asked("search.yaml", str(folder), resume=True, evaluator=again), progress=False)  # type: ignore[arg-type]
        assert (folder / "best.yaml").read_text() == (here / "best/best.yaml").read_text()
        assert again.calls == len(lines) - kept


def test_a_rule_may_name_any_model_of_the_paths(here: Path) -> None:
    """Not only the first one, whose own layers are where the search begins."""
    rule = "  evaluations: 18\n  pick: minimize loss subject to loss <= 1 of ./b\n"
    (here / "search.yaml").write_text(f"paths: {{models: [./a, ./b]}}\n{SEARCH}{rule}")
    evaluator: Any = Distance(read(here / "a"))
    outcome = evolve(Asked("search.yaml", "best", evaluator=evaluator), progress=False)
    assert outcome.best.known.metrics["loss"] == 0


@pytest.mark.exhaustive
def test_another_rule_picks_from_the_second_part(here: Path) -> None:
    """Scores of the second part are those of the values that the first part hands on, so a flag doesn't change these."""

    class Sum:
        metrics: tuple[str, ...] | None = ("high", "low")
        calls = 0

        def count(self, split: str) -> None:
            return None

        def __call__(self, candidate: Candidate, split: str, seed: int, samples: Any) -> Scores:
            self.calls += 1
            held = candidate.state_dict()
            value = float(held[OUTSIDE[0]].sum()) + len(held)
            return Scores({"high": value, "low": value})

    first, again = Sum(), Sum()
    text = TWO.replace("{loss: minimize}", "{high: maximize, low: minimize}").replace("  optimizer: cma\n", "")
    (here / "search.yaml").write_text(f"{text}  pick: maximize high\n")
    found = evolve(Asked("search.yaml", "best", evaluator=first), progress=False)
    other = evolve(Asked("search.yaml", "best", resume=True, pick="minimize low", evaluator=again), progress=False)
    assert again.calls == 0
    assert found.first is not None
    assert other.first is not None
    assert other.first.best.values == found.first.best.values
    assert other.best.known.metrics["low"] == min(one.known.metrics["low"] for one in other.finalists)
    assert other.best.title != found.best.title
    assert other.space.recipe(other.best.values).stages == found.space.recipe(found.best.values).stages


def test_both_parts_are_checked_before_the_first(here: Path) -> None:
    def problems(text: str) -> str:
        (here / "search.yaml").write_text(text)
        evaluator: Any = Distance({})
        with pytest.raises(ConfigError) as caught:
            evolve(Asked("search.yaml", "best", evaluator=evaluator), progress=False)
        assert evaluator.calls == 0
        assert not (here / "best").exists()
        return "\n".join(caught.value.problems)

    assert "optimizer cma searches numbers only" in problems(TWO.replace("population: 12", "optimizer: cma"))
    assert "10 evaluations are less than one generation" in problems(TWO.replace("evaluations: 72", "evaluations: 10"))
    assert "low must be below high" in problems(TWO.replace("[0.5, 2]", "[2, 0.5]"))
    assert "then searches paths, and no document has any" in problems(
        TWO.replace("paths: {models: [both, ./deep]", "x: {y: 1")
    )
    assert "no value is free" in problems(TWO.replace("{search: [0, 1]}", "1"))
    assert "search.yaml:9:3: " not in problems(TWO.replace("population: 12", "populaton: 12"))
    assert "unknown key 'populaton'; did you mean 'population'?" in problems(TWO.replace("population: 12", "populaton: 12"))


def test_the_spaces_of_two_parts(here: Path) -> None:
    first = space_of(TWO, "search.yaml", Merger(), FIRST)
    assert [gene.name for gene in first.genes] == ["./a: weight"]
    second = space(TWO, THEN, (0.125,))
    assert len(second.genes) == 14
    recipe = second.recipe(second.first[0])
    assert recipe.stages[0].slices[0].inputs[0].settings["weight"][0].value == 0.125


def test_what_has_no_effect_is_told(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Once, though several spaces are made of a file."""
    text = f"paths: {{models: [./a], unheard_of: 1}}\n{SEARCH}  evaluations: 8\n  noisy: true\n"
    (here / "search.yaml").write_text(text)
    evolve(Asked("search.yaml", "best", evaluator=Distance({})), progress=False)  # type: ignore[arg-type]
    assert caplog.text.count("search.yaml:1:24: 'unheard_of' has no effect in paths, which has models, repeats, scales") == 1
    assert caplog.text.count("noisy has no effect with optimizer cat_cma") == 1


SCORE = """
import numpy as np


def score(candidate, split, seed, samples):
    held = candidate.state_dict()
    return {"loss": sum(float(np.abs(value).sum()) for value in held.values())}
"""


@pytest.mark.exhaustive
def test_processes_find_the_same(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both parts of a search, in the command's own process, and in one and three others."""
    (here / "score.py").write_text(SCORE)
    (here / "search.yaml").write_text(TWO.replace("nothing:nothing", "score:score").replace("72", "24"))
    monkeypatch.syspath_prepend(str(here))
    for workers in (1, 2, 3):
        evolve(Asked("search.yaml", f"best{workers}", workers=workers), progress=False)
    texts = {(here / f"best{workers}/best.yaml").read_text() for workers in (1, 2, 3)}
    assert len(texts) == 1
