"""Test analyze: what models changed in their base, against hand-made numbers, the definitions in NumPy, and merges."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from paddle_merge import AnalyzeConfig, CheckpointError, ConfigError, MergeConfig, OutputError, analyze, merge
from paddle_merge.backends.budget import DEFAULT_BUDGET
from paddle_merge.commands.analyze import measure
from paddle_merge.commands.analyze.measure import ROUNDS
from paddle_merge.commands.analyze.page import page
from paddle_merge.commands.analyze.show import lines
from paddle_merge.commands.analyze.sums import ModelSums, PairSums, total
from paddle_merge.commands.main import main
from paddle_merge.drawing.svg import line_chart
from paddle_merge.methods.paddlenlp import METHODS
from tests.conversion.lora.test_lora import factors, folded, in_peft, peft
from tests.conversion.test_layout import CONFIG, laid_out, llama, stored
from tests.support import oracle
from tests.support.checkpoints import from_bits, read, to_bits, write
from tests.support.html_pages import Reader

State = Mapping[str, np.ndarray]


def report(base: Any, *models: Any, **fields: Any) -> dict[str, Any]:
    config = AnalyzeConfig([str(model) for model in models], base_model_path=str(base), **fields)
    return analyze(config, progress=False)


def analysed(folder: Path, base: State, *models: State, dtype: str = "float32", **fields: Any) -> dict[str, Any]:
    """The report on checkpoints of these tensors."""
    paths = [write(folder / f"model{number}", model, dtype) for number, model in enumerate(models)]
    return report(write(folder / "base", base, dtype), *paths, **fields)


def method(found: Mapping[str, Any], name: str) -> dict[str, Any]:
    (row,) = (row for row in found["methods"] if row["method"] == name)
    assert isinstance(row, dict)
    return row


def codes(found: Mapping[str, Any]) -> dict[str, list[str]]:
    """The warnings."""
    return {one["code"]: one["about"] for one in found["advice"] if one["warning"]}


def tuned(seed: int, size: float = 0.01, count: int = 4) -> tuple[State, list[State]]:
    """A base, and models that lie `size` of its norm away, in unrelated directions."""
    random = np.random.default_rng(seed)
    shapes = {f"model.layers.{layer}.{kind}.weight": (24, 16) for layer in range(3) for kind in ("q_proj", "up_proj")}
    shapes["model.embed_tokens.weight"] = (64, 16)
    base = {name: random.standard_normal(shape) for name, shape in shapes.items()}
    moved = [{name: x + size * random.standard_normal(x.shape) for name, x in base.items()} for _ in range(count)]
    return base, list(moved)


# --- by hand -----------------------------------------------------------------------------------------------------------


def test_by_hand(tmp_path: Path) -> None:
    """Task vectors (1/2, 0, -1/2, 0) and (1/4, 0, 1/4, 1) on a base of ones.

    At density 1/2 the quantile of magnitudes is half-way between the second and the third: 1/4 of 0, 0, 1/2, 1/2, and 1/4 of
    0, 1/4, 1/4, 1; so trimming drops nothing that changed, and rescaling does nothing. The third element elects minus.
    """
    a, b = np.array([1.5, 1.0, 0.5, 1.0]), np.array([1.25, 1.0, 1.25, 2.0])
    found = analysed(tmp_path, {"w": np.ones(4)}, {"w": a}, {"w": b}, reserve_p=0.5)
    one, other = found["models"]
    assert (one["elements"], one["changed"], one["changed_fraction"]) == (4, 2, 0.5)
    assert (one["mean"], one["largest"], one["norm"]) == (0.5, 0.5, math.sqrt(0.5))
    assert one["relative"] == pytest.approx(math.sqrt(0.5) / 2, rel=1e-15)
    assert one["base_cosine"] == pytest.approx(4 / (2 * math.sqrt(4.5)), rel=1e-15)
    assert (other["changed"], other["largest"], other["longest_tensor"]) == (3, 1.0, "w")
    (pair,) = found["pairs"]
    assert (pair["cosine"], pair["sign_conflict"], pair["weighted_sign_conflict"]) == (0.0, 0.5, 0.5)
    assert (pair["overlap"], pair["trimmed_overlap"]) == (2 / 3, 2 / 3)
    assert pair["distance"] == pytest.approx(math.sqrt(0.5 + 1.125), rel=1e-15)
    ties = method(found, "ties")
    assert ties["dropped_by_sparsifier"] == {"elements": 0.0, "mass": 0.0}
    assert ties["dropped_by_election"] == ties["dropped"] == {"elements": 0.2, "mass": pytest.approx(0.1, rel=1e-15)}
    assert [row["dropped"]["elements"] for row in ties["models"].values()] == [0.0, 1 / 3]
    assert (ties["cancelled"], ties["sparsified_distance"]) == (None, 0.0)
    linear = method(found, "linear")
    assert linear["dropped"] == {"elements": 0.0, "mass": 0.0}
    assert linear["cancelled"] == pytest.approx(1 - 2.0 / 2.5)  # the sum is (3/4, 0, -1/4, 1)
    assert found["average_norm"] == pytest.approx(math.sqrt(0.5625 + 0.0625 + 1) / 2)
    assert method(found, "slerp")["dropped"] == {"elements": 0.0, "mass": 0.0}


def test_trimming_by_hand(tmp_path: Path) -> None:
    """Of magnitudes 1, 2, 4, 8 and a density of 1/4 the quantile is 4 + (8 - 4) / 4 = 5: the 8 is kept, and of the other the
    8 too, elsewhere. Rescaled to the L1 norm of 15, it lies 7 too high; the rest, 1 + 4 + 16, is lost."""
    a, b = np.array([1.0, 2.0, 4.0, 8.0]), np.array([8.0, -4.0, 2.0, 1.0])
    found = analysed(tmp_path, {"w": np.zeros(4)}, {"w": a}, {"w": b}, reserve_p=0.25)
    ties = method(found, "ties")
    assert ties["dropped_by_sparsifier"] == {"elements": 0.75, "mass": pytest.approx(14 / 30)}
    assert ties["dropped_by_election"] == {"elements": 0.0, "mass": 0.0}
    assert ties["sparsified_distance"] == pytest.approx(math.sqrt((49 + 21) / 85))
    assert found["pairs"][0]["trimmed_overlap"] == 0.0
    plain = analysed(tmp_path / "plain", {"w": np.zeros(4)}, {"w": a}, reserve_p=0.25, rescale=False)
    assert method(plain, "ties")["sparsified_distance"] == pytest.approx(math.sqrt(21 / 85))
    assert (plain["models"][0]["relative"], plain["models"][0]["base_cosine"]) == (None, None)


def test_layers_kinds_and_totals_are_of_their_tensors(tmp_path: Path) -> None:
    """3-4-5: a task vector of 3 in one layer, of 4 in the other."""
    names = [f"model.layers.{layer}.{kind}.weight" for layer in (0, 1) for kind in ("q_proj", "up_proj")]
    base = {name: np.ones(2) for name in names}
    a = base | {names[0]: np.array([4.0, 1.0]), names[3]: np.array([1.0, 5.0])}
    found = analysed(tmp_path, base, a, base | {names[0]: np.array([0.0, 1.0])})
    assert [(row["stack"], row["layer"], row["models"]["A"]["norm"]) for row in found["layers"]] == [
        ("model.layers", 0, 3.0), ("model.layers", 1, 4.0)
    ]  # fmt: skip
    assert {row["kind"]: row["models"]["A"]["norm"] for row in found["kinds"]} == {"q_proj": 3.0, "up_proj": 4.0}
    model = found["models"][0]
    assert (model["norm"], model["longest_tensor"]) == (5.0, names[3])
    assert (model["changed_tensors"], model["unchanged_tensors"]) == (2, names[1:3])
    assert found["layers"][0]["pairs"]["A-B"] == found["tensors"][0]["pairs"]["A-B"] | {"elements": 4}
    assert (found["layers"][0]["pairs"]["A-B"]["cosine"], found["layers"][1]["pairs"]["A-B"]["cosine"]) == (-1.0, None)
    assert found["pairs"][0]["cosine"] == pytest.approx(-3 / 5)


def test_one_model_alone_has_no_pairs(tmp_path: Path) -> None:
    found = analysed(tmp_path, {"w": np.zeros(5)}, {"w": np.arange(5.0)}, reserve_p=1.0)
    assert (found["pairs"], found["epsilon"]) == ([], 0.0)
    assert [row["method"] for row in found["methods"]] == [name for name in METHODS if name != "slerp"]
    assert all(row["dropped"] == {"elements": 0.0, "mass": 0.0} for row in found["methods"])


# --- against the definitions -------------------------------------------------------------------------------------------


def expected(xs: list[np.ndarray], density: float, rescale: bool, narrow: bool) -> dict[str, Any]:
    """Counts of what methods drop; None where a vote hangs on a rounding error."""
    result: dict[str, Any] = {}
    for sparsifier, merge_types in ROUNDS.items():
        kept = []
        for k, x in enumerate(xs):
            hashes = oracle.hashes(0, k, "w", len(x))
            kept.append(
                oracle.trim(x, density, rescale, narrow) if sparsifier == "trim"
                else oracle.dare(x, density, rescale, hashes) if sparsifier == "dare"
                else oracle.magprune(x, density, min(0.14, 2 * density, 2 - 2 * density), rescale, hashes) if sparsifier
                else x
            )  # fmt: skip
        alike = [s != 0 for s in kept]
        certain = not (rescale and sparsifier) or bool(
            (oracle.decided(kept, [1.0] * len(xs)) | (np.sum(alike, 0) < 2)).all()
        )
        if "ties" in merge_types and certain:
            merged = oracle.ties(kept, [1.0] * len(xs), False, "sum", "positive")
            result[f"{sparsifier} ties"] = [alike, [s * merged > 0 for s in kept]]
        if "linear" in merge_types:
            size = sum(np.abs(s).sum() for s in kept)
            result[f"{sparsifier} linear"] = [alike, alike, 1 - np.abs(sum(kept)).sum() / size if size else None]
    return result


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_against_numpy(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Values are sixteenths, so that every dtype holds them and their sums."""
    models, size = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 40))
    dtype = data.draw(st.sampled_from(["bfloat16", "float16", "float32", "float64"]))
    density, rescale = data.draw(st.sampled_from([0.1, 0.25, 0.5, 0.9, 1.0])), data.draw(st.booleans())
    sixteenths = st.lists(st.integers(-32, 32), min_size=size, max_size=size).map(lambda values: np.array(values) / 16)
    base, xs = data.draw(sixteenths), [data.draw(sixteenths) for _ in range(models)]
    assume(any(x.any() for x in xs))
    folder = tmp_path_factory.mktemp("analysed")
    found = analysed(folder, {"w": base}, *({"w": base + x} for x in xs), dtype=dtype, reserve_p=density, rescale=rescale)
    for row, x in zip(found["models"], xs, strict=True):
        assert (row["changed"], row["norm"]) == ((x != 0).sum(), pytest.approx(np.linalg.norm(x)))
        assert row["largest"] == np.abs(x).max()
        if base.any():
            assert row["relative"] == pytest.approx(np.linalg.norm(x) / np.linalg.norm(base))
    trimmed = [oracle.trim(x, density, rescale, dtype != "float64") != 0 for x in xs]
    for row, (j, k) in zip(found["pairs"], combinations(range(models), 2), strict=True):
        a, b = xs[j], xs[k]
        both, either = (a != 0) & (b != 0), (a != 0) | (b != 0)
        opposed = both & (np.sign(a) != np.sign(b))
        assert (row["both"], row["conflicts"], row["identical"]) == (both.sum(), opposed.sum(), bool((a == b).all()))
        assert row["overlap"] == (both.sum() / either.sum() if either.any() else None)
        union = (trimmed[j] | trimmed[k]).sum()
        assert row["trimmed_overlap"] == ((trimmed[j] & trimmed[k]).sum() / union if union else None)
        if both.any():
            weights = np.abs(a * b)
            assert row["weighted_sign_conflict"] == pytest.approx(weights[opposed].sum() / weights.sum(), abs=1e-12)
        if a.any() and b.any():
            assert row["cosine"] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-12)
    assert found["average_norm"] == pytest.approx(np.linalg.norm(sum(xs)) / models, abs=1e-7)
    changed, mass = sum((x != 0).sum() for x in xs), sum(np.abs(x).sum() for x in xs)
    wanted = expected(xs, density, rescale, dtype != "float64")
    for row in found["methods"]:
        name = f"{row['sparsifier']} {row['merge_type']}"
        if name not in wanted:
            continue
        kept, left, *cancelled = wanted[name]
        for what, masks in (("dropped_by_sparsifier", kept), ("dropped", left)):
            lost = sum(np.abs(x[~mask]).sum() for x, mask in zip(xs, masks, strict=True))
            assert row[what]["elements"] == pytest.approx((changed - sum(mask.sum() for mask in masks)) / changed)
            assert row[what]["mass"] == pytest.approx(lost / mass, abs=1e-12)
        if cancelled:
            assert row["cancelled"] == (None if cancelled[0] is None else pytest.approx(cancelled[0], abs=1e-5))


@pytest.mark.parametrize("sparsifier", ["trim", "dare", "magprune"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_what_is_dropped_is_what_a_merge_drops(tmp_path: Path, sparsifier: str, dtype: str) -> None:
    """Of a model alone, to the element: the merged model differs from the base where the method kept a change."""
    random = np.random.default_rng(3)
    base = {"w": np.zeros((300, 400))}
    model = {"w": random.standard_normal((300, 400)) * (random.random((300, 400)) < 0.7)}
    found = analysed(tmp_path, base, model, dtype=dtype, reserve_p=0.3)
    merge(
        MergeConfig(
            model_path_list=[str(tmp_path / "model0")],
            base_model_path=str(tmp_path / "base"),
            sparsify_type=sparsifier,
            reserve_p=0.3,
            output_path=str(tmp_path / "merged"),
        )
    )
    kept = int((read(tmp_path / "merged")["w"] != 0).sum())
    changed = int((from_bits(to_bits(model["w"], dtype), dtype) != 0).sum())
    (row,) = (row for row in found["methods"] if row["sparsifier"] == sparsifier and row["merge_type"] == "ties")
    assert found["models"][0]["changed"] == changed
    assert row["dropped"]["elements"] == (changed - kept) / changed
    assert 0 < kept < changed


# --- whoever computes ----------------------------------------------------------------------------------------------------


def test_the_same_for_any_number_of_workers_and_any_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    shapes = {"big": (700, 300), "small": (5,), "model.layers.0.q_proj.weight": (300, 300)}
    base = {name: random.standard_normal(shape) for name, shape in shapes.items()}
    models = [{name: x + 0.01 * random.standard_normal(x.shape) for name, x in base.items()} for _ in range(3)]
    first = analysed(tmp_path, base, *models, dtype="bfloat16", n_process=1)
    paths = [tmp_path / f"model{number}" for number in range(3)]
    assert report(tmp_path / "base", *paths, n_process=5) == first
    monkeypatch.setattr(
        measure, "DEFAULT_BUDGET", replace(DEFAULT_BUDGET, resident=0)
    )  # tensors that are too large to be kept between passes
    assert report(tmp_path / "base", *paths) == first
    json.dumps(first, allow_nan=False)


def test_adapters_and_layouts_mix(tmp_path: Path) -> None:
    base, pairs = llama(0), factors(1)
    whole = folded(base, pairs)
    adapter = peft(tmp_path / "adapter", in_peft(pairs))
    hf = stored(tmp_path / "base", base, "hf", dtype="float64")
    transposed = stored(tmp_path / "turned", whole, "paddlenlp", dtype="float64")
    found = report(hf, f"{hf}+{adapter}", transposed, stored(tmp_path / "plain", whole, "hf", dtype="float64"))
    assert found["layout"] == "hf"
    assert any("read as hf" in note for note in found["notes"])
    a_b, a_c, b_c = found["pairs"]
    assert b_c["identical"]
    assert (a_b["cosine"], a_c["cosine"]) == (pytest.approx(1.0), pytest.approx(1.0))
    assert found["models"][0]["norm"] == pytest.approx(found["models"][2]["norm"])
    assert {row["kind"] for row in found["kinds"] if row["models"]["A"]["changed"]} == {
        row["kind"] for row in found["kinds"] if row["models"]["C"]["changed"]
    }


def test_a_head_that_is_the_embedding_counts_once(tmp_path: Path) -> None:
    """Two models that tie lm_head to the embedding and store it all the same, as PaddleNLP does."""
    config = CONFIG | {"tie_word_embeddings": True}
    paths = []
    for seed in (0, 1):
        model = laid_out(llama(seed, tied=True), "paddlenlp")
        model = {**model, "lm_head.weight": model["llama.embed_tokens.weight"]}
        paths.append(write(tmp_path / str(seed), model, "bfloat16", config=config))
    found = report(*paths)
    assert found["same_bytes"] == {"lm_head.weight": "llama.embed_tokens.weight"}
    assert "lm_head.weight" not in [row["name"] for row in found["tensors"]]
    assert found["models"][0]["elements"] == sum(value.size for value in llama(0, tied=True).values())


# --- what doesn't belong -------------------------------------------------------------------------------------------------


def test_models_of_one_base_raise_no_warning(tmp_path: Path) -> None:
    base, models = tuned(0)
    found = analysed(tmp_path, base, *models)
    assert codes(found) == {}
    said = {one["code"] for one in found["advice"]}
    assert said == {"unrelated", "signs", "ties_drops", "dare_noise"}


def test_other_random_weights_are_spotted(tmp_path: Path) -> None:
    base, models = tuned(0, count=2)
    other, _ = tuned(99)
    found = analysed(tmp_path, base, *models, other)
    assert codes(found) == {"another_run": ["C"]}
    assert found["models"][2]["relative"] == pytest.approx(math.sqrt(2), rel=0.1)
    assert abs(found["models"][2]["base_cosine"]) < 0.1


def test_the_base_among_the_models_is_spotted(tmp_path: Path) -> None:
    base, models = tuned(0, count=2)
    found = analysed(tmp_path, base, models[0], base, models[1])
    assert codes(found) == {"equals_base": ["B"]}
    assert found["models"][1]["unchanged_tensors"] == list(base)


def test_a_model_given_twice_is_spotted(tmp_path: Path) -> None:
    base, models = tuned(0, count=2)
    found = analysed(tmp_path, base, models[0], models[1], models[0])
    assert codes(found) == {"identical": ["A", "C"]}
    assert found["pairs"][1]["cosine"] == 1.0


def test_a_task_vector_of_another_length_is_spotted(tmp_path: Path) -> None:
    base, models = tuned(0, size=0.002, count=3)
    _, (long, *_) = tuned(0, size=0.08, count=1)
    assert codes(analysed(tmp_path / "long", base, *models[1:], long)) == {"long": ["C"]}
    _, (short, *_) = tuned(0, size=0.0001, count=1)
    assert codes(analysed(tmp_path / "short", base, *models[1:], short)) == {"short": ["C"]}


def test_the_wrong_base_is_spotted(tmp_path: Path) -> None:
    """Models of one base are near to each other, whatever base they are compared with; unrelated ones are not."""
    _, models = tuned(0, count=3)
    other, _ = tuned(99)
    assert codes(analysed(tmp_path / "one", other, *models)) == {"wrong_base": ["A", "B", "C"]}
    strangers = [tuned(seed)[0] for seed in (1, 2)]
    found = analysed(tmp_path / "many", other, *strangers)
    assert [one["code"] for one in found["advice"]] == ["another_run", "another_run"]


def test_one_that_goes_its_own_way_is_spotted(tmp_path: Path) -> None:
    base, (a, b, c, shared) = tuned(0)
    alike = [
        {name: base[name] + (model[name] - base[name]) + (shared[name] - base[name]) for name in base} for model in (a, b)
    ]
    found = analysed(tmp_path, base, *alike, c)
    assert codes(found) == {"stranger": ["C"]}


def test_many_alike_take_one_sentence(tmp_path: Path) -> None:
    """Steps of one run: 10 pairs of 5."""
    base, (end, *_) = tuned(0, count=1)
    steps = [{name: x + (end[name] - x) * (0.5 + 0.1 * step) for name, x in base.items()} for step in range(5)]
    found = analysed(tmp_path, base, *steps)
    (said,) = (one for one in found["advice"] if one["code"] == "alike")
    assert (said["about"], said["warning"]) == (list("ABCDE"), False)
    assert said["text"].startswith("A and B, A and C, A and D and 7 more pairs have almost the same task vector")
    assert codes(found) == {}


def test_what_speaks_for_averaging(tmp_path: Path) -> None:
    """Two that share half of what they changed; two that changed different elements; and two that changed the opposite."""
    base, (a, b, shared) = tuned(0, count=3)
    alike = [{name: model[name] + shared[name] - base[name] for name in base} for model in (a, b)]
    said = {one["code"]: one["text"] for one in analysed(tmp_path / "alike", base, *alike)["advice"]}
    assert "related" in said
    assert "unrelated" not in said
    even = {name: np.where(np.arange(x.shape[1]) % 2, base[name], x) for name, x in a.items()}
    odd = {name: np.where(np.arange(x.shape[1]) % 2, x, base[name]) for name, x in b.items()}
    said = {one["code"]: one["text"] for one in analysed(tmp_path / "apart", base, even, odd, reserve_p=0.7)["advice"]}
    assert {"sparse", "nothing_trimmed", "unrelated"} <= said.keys()
    assert "few_changed" not in said, "half of all elements are not few"
    back = {name: 2 * base[name] - x for name, x in a.items()}
    assert codes(analysed(tmp_path / "back", base, a, back)) == {"against": ["A", "B"]}


@pytest.mark.parametrize(("kept", "few"), [(0.2, True), (0.45, False)])
def test_few_changes_in_orthogonal_directions_speak_for_ram(tmp_path: Path, kept: float, few: bool) -> None:
    base, models = tuned(9)
    random = np.random.default_rng(10)
    for model in models:
        for name, values in model.items():
            model[name] = np.where(random.random(values.shape) < kept, values, base[name])
    said = {one["code"]: one["text"] for one in analysed(tmp_path, base, *models)["advice"]}
    assert ("few_changed" in said) == few
    assert not few or ("ram, which takes" in said["few_changed"] and "arXiv 2606.18521" in said["few_changed"])


def test_what_no_merge_takes_is_reported(tmp_path: Path) -> None:
    ones = np.ones(4)
    base = {"w": ones, "v": ones, "s": ones, "i": np.arange(3), "only": ones, "n": ones}
    a = {"w": 2 * ones, "v": 2 * ones, "s": np.ones(5), "i": np.arange(3), "n": np.array([1.0, np.nan, 1.0, 1.0])}
    b = {"w": 3 * ones, "s": 2 * ones, "i": np.arange(1, 4), "more": ones, "only": ones, "n": 2 * ones, "v": ones}
    found = analysed(tmp_path, base, a, b)
    assert found["missing"] == {"only": ["A"], "more": ["A", "base"]}
    assert found["different_shapes"] == {"s": ["A"]}
    assert found["different_integers"] == {"i": ["B"]}
    assert found["not_finite"] == {"n": ["A"]}
    rows = {row["name"]: row for row in found["tensors"]}
    assert rows.keys() == {"w", "v", "s", "n", "only"}
    assert (rows["n"]["models"].keys(), rows["n"]["models"]["B"]["norm"]) == ({"B"}, 2.0)
    assert (found["models"][0]["elements"], found["models"][1]["elements"], found["pairs"][0]["elements"]) == (8, 20, 8)
    assert codes(found).keys() >= {"missing", "different_shapes", "different_integers", "not_finite"}
    (said,) = (one["text"] for one in found["advice"] if one["code"] == "missing")
    assert "A merge unties an lm_head" in said  # of a base that ties it, which a merge doesn't refuse
    assert "--missing_tensors" in said
    assert not found["models"][1]["equals_base"]
    in_base = analysed(tmp_path / "base has it", base | {"n": a["n"]}, base)
    assert in_base["not_finite"] == {"n": ["base"]}
    assert not in_base["models"][0]["equals_base"]


def test_nothing_in_common(tmp_path: Path) -> None:
    found = analysed(tmp_path, {"w": np.ones(2)}, {"v": np.ones(2)})
    assert (found["compared_tensors"], [one["code"] for one in found["advice"]]) == (0, ["missing", "nothing"])
    assert "No model has a tensor of the base" in page(found)
    assert "warning" in "\n".join(lines(found, 3))


def test_empty_tensors_and_scalars(tmp_path: Path) -> None:
    base = {"empty": np.zeros((0, 3)), "scalar": np.array(2.0), "one": np.ones(1)}
    found = analysed(tmp_path, base, {**base, "scalar": np.array(3.0)}, base)
    assert [row["models"]["A"]["norm"] if row["models"] else None for row in found["tensors"]] == [None, 1.0, 0.0]
    assert codes(found) == {"equals_base": ["B"]}


def test_what_float64_cannot_square_is_none_not_nonsense(tmp_path: Path) -> None:
    found = analysed(
        tmp_path, {"w": np.zeros(2)}, {"w": np.array([1e200, 1.0])}, {"w": np.array([-1e200, 2.0])}, dtype="float64"
    )
    row = found["models"][0]
    assert (row["norm"], row["relative"], row["changed"], row["largest"]) == (None, None, 2, 1e200)
    assert (found["pairs"][0]["cosine"], found["pairs"][0]["sign_conflict"]) == (None, 0.5)
    json.dumps(found, allow_nan=False)
    assert page(found)
    assert list(lines(found, 3))


def test_sums_add_up() -> None:
    one = ModelSums(4, 2, 1.0, 1.0, 0.5, 4.0, 0.75)
    both = [one, ModelSums(4, 1, 1.0, 1.0, 0.0, 0.0, 0.5)]
    assert total(ModelSums, both) == ModelSums(8, 3, 2.0, 2.0, 0.5, 4.0, 0.75)
    assert total(PairSums, []) == PairSums()


# --- what people see -----------------------------------------------------------------------------------------------------


def test_the_page_is_whole_and_needs_no_network(tmp_path: Path) -> None:
    evil = "model.layers.0.<script>alert('x')</script>&\"weight\".q_proj.weight"
    ones = {evil: np.ones((4, 4)), "model.layers.1.q_proj.weight": np.ones((4, 4))}
    models = [{name: x + number for name, x in ones.items()} for number in (1, 2, -3)]
    written = tmp_path / "report.html"
    folder = tmp_path / "<b>bold" / "\u202enews"
    found = analysed(folder, ones, *models, html=str(written))
    text = written.read_text()
    assert text == page(found)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["<b>bold", "report.html"]
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    assert reader.addresses == []
    assert reader.tags <= {
        "html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "div", "table", "tr", "th", "td", "ul",
        "li", "svg", "g", "rect", "text", "path", "circle",
    }  # fmt: skip
    assert "http" not in text
    assert "url(" not in text
    assert "@import" not in text
    assert evil in reader.text
    assert "\u202e" not in text
    for words in ("Findings", "Cosine of task vectors", "Sign conflict", "dare_linear", "Layers of model.layers"):
        assert words in reader.text


def test_a_chart_leaves_gaps_where_nothing_is_known() -> None:
    drawn = line_chart(["A"], [0, 1, 2, 3, 4], [[1.0, 2.0, None, 3.0, 1.0]], "layer")
    (path,) = (part for part in drawn.split("<path") if 'fill="none"' in part)
    assert path.count("M") == 2
    assert path.count("L") == 2
    assert drawn.count("<circle") == 4
    assert line_chart(["A"], [3], [[0.0]], "layer").count("<circle") == 1


def test_a_chart_of_very_different_numbers_goes_by_powers_of_ten() -> None:
    """0.002 to 0.5: from 0.001 at the bottom (210) to 1 at the top (10), 0.01 a third of the way up; no place for 0."""
    drawn = line_chart(["A", "B"], [0, 1, 2], [[0.002, 0.01, 0.0], [0.5, 0.1, 0.1]], "layer")
    heights = [float(part.split('"')[0]) for part in drawn.split('cy="')[1:]]
    assert heights == pytest.approx(
        [210 - 200 / 3 * math.log10(2), 210 - 200 / 3, 10 + 200 / 3 * math.log10(2), 76.7, 76.7], abs=0.06
    )
    assert [word in drawn for word in (">0.001<", ">0.01<", ">0.1<", ">1<")] == [True] * 4


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as exit:
        main(["analyze", *argv])
    out, err = capsys.readouterr()
    code = exit.value.code
    assert code is None or isinstance(code, int)
    return code or 0, out, err


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, models = tuned(0, count=3)
    paths = [str(write(tmp_path / name, state)) for name, state in zip("zabc", [base, *models], strict=True)]
    code, out, err = run(capsys, "--base_model_path", *paths, "--top", "2")
    assert (code, err) == (0, "")
    text = out.splitlines()
    assert text[0].split() == ["base", paths[0]]
    assert text[3].split() == ["C", paths[3]]
    assert any(line.startswith("note  The cosines are near 0") for line in text)
    assert [line.split()[0] for line in text if line[:4] in ("A-B ", "A-C ", "B-C ")] == ["A-B", "A-C", "B-C"]
    assert "share of the changes that each method drops, with --reserve_p 0.2 --epsilon 0.14" in text
    assert {line.split()[0] for line in text if line} >= METHODS.keys() - {"slerp"}
    assert "layers that changed most (2 of 3)" in [line.strip() for line in text]
    assert max(map(len, text)) <= 100
    code, out, _ = run(capsys, "--json", "--base_model_path", paths[0], "--model_path_list", *paths[1:])
    again = json.loads(out)
    assert (code, [row["path"] for row in again["models"]]) == (0, paths[1:])
    assert again == json.loads(json.dumps(report(*paths)))


def test_problems_come_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = AnalyzeConfig([], reserve_p=0.0, top=-1, n_process=0, html="x/y.pdf", layout=["hf", "hf", "pd"])
    with pytest.raises(ConfigError) as caught:
        analyze(config)
    assert caught.value.problems == [
        "--layout 'pd' must be one of hf, paddlenlp, paddleformers",
        "--top -1 must be at least 0",
        "--n_process 0 must be at least 1",
        "give the base model that all models were fine-tuned from: --base_model_path BASE",
        "give at least one model: python -m paddle_merge analyze --base_model_path BASE A B",
        "--layout has 3 words for 1 models (the base last)",
        "--reserve_p 0 keeps nothing of the models; it must be greater than 0 and at most 1",
        "--html x/y.pdf must end in .html",
        "--html x/y.pdf: no such folder; create it first",
    ]
    none = str(tmp_path / "none")
    assert run(capsys, none, "--epsilon", "0.9", "--base_model_path", f"{none}/2")[::2] == (
        1,
        "error: --epsilon 0.9 with --reserve_p 0.2 would need probabilities outside 0 to 1: keep probabilities span"
        f" reserve_p -/+ epsilon/2, so epsilon may be at most 0.4\nerror: {none}: no such file or folder\n"
        f"error: {none}/2: no such file or folder\n",
    )
    assert run(capsys, none)[2].startswith(
        "error: give the base model that all models were fine-tuned from: --base_model_path BASE\n"
    )
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(ConfigError, match="is a folder"):
        report(none, none, html=str(tmp_path / "folder.html"))


def test_a_page_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OutputError, match=r"report\.html: can't be written"):
        analysed(tmp_path, {"w": np.ones(2)}, {"w": np.zeros(2)}, html=str(tmp_path / "out" / "report.html"))
    assert list((tmp_path / "out").iterdir()) == []


def test_a_damaged_model_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a", {"w": np.ones(300)})
    base = write(tmp_path / "b", {"w": np.ones(300)})
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        report(base, path)
