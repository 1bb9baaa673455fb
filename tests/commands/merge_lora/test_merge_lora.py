"""Test merge-lora: what the merged adapter adds to the base is what the adapters add, weighed, by formulas of our own."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddle_merge import MergeConfig, merge
from tests.conversion.lora.test_lora import peft
from tests.conversion.test_layout import llama, stored
from tests.support.adapters import (
    EMBEDDING,
    OUT,
    Q,
    V,
    assert_same,
    changes,
    lora,
    merged,
    settings_of,
    total,
)
from tests.support.checkpoints import dtypes, read


def test_by_hand(tmp_path: Path) -> None:
    """Of rank 1 each, alpha / r 2 and 4: 1/2 * 2 * [1, 2] [[10, 20]] + (-1) * 4 * [0, 1] [[1, 0]]."""
    a, b = (
        peft(
            tmp_path / str(alpha),
            {f"{Q}.lora_A.weight": np.array([row]), f"{Q}.lora_B.weight": np.array([column]).T},
            "float32",
            r=1,
            lora_alpha=alpha,
        )
        for row, column, alpha in (([10.0, 20.0], [1.0, 2.0], 2), ([1.0, 0.0], [0.0, 1.0], 4))
    )
    out, report = merged(tmp_path, a, b, weight_list=[0.5, -1.0])
    tensors, config = read(out, "adapter_model"), settings_of(out)
    assert changes(out)[f"{Q}.weight"].tolist() == [[10.0, 20.0], [16.0, 40.0]]
    # Scales of 1 and -4: of two that are met once each, the larger is the adapter's.
    assert (config["r"], config["lora_alpha"], config["rank_pattern"], config["use_rslora"]) == (2, 8, {}, False)
    assert tensors[f"base_model.model.{Q}.lora_A.weight"].tolist() == [[10.0, 20.0], [1.0, 0.0]]
    assert tensors[f"base_model.model.{Q}.lora_B.weight"].tolist() == [[0.25, 0.0], [0.5, -1.0]]
    assert report["distance_from_sum"] == 0.0
    assert json.loads((out / "merge_lora_report.json").read_text()) == report


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_the_sum_is_exact_for_any_ranks_scales_and_layers(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("sum")
    sizes = {name: (data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))) for name in (Q, V, OUT, EMBEDDING)}
    adapters, weights = [], []
    for number in range(data.draw(st.integers(1, 3))):
        names = data.draw(st.lists(st.sampled_from([*sizes]), min_size=1, unique=True))
        ranks = {name: data.draw(st.integers(1, 4)) for name in names}
        config = {
            "rank_pattern": ranks,
            "alpha_pattern": {name: data.draw(st.integers(1, 9)) for name in names if data.draw(st.booleans())},
            "use_rslora": data.draw(st.booleans()),
        }
        layers = {name: (*sizes[name], ranks[name]) for name in names}
        adapters.append(lora(folder / str(number), layers, number, **config))
        weights.append(data.draw(st.sampled_from([1.0, 0.3, -0.7, 2.0, 0.0])))
    out, report = merged(folder, *adapters, weight_list=weights)
    exact = total(adapters, weights)
    assert_same(changes(out), exact)
    for row in report["layers"]:
        assert row["rank"] == sum(
            settings_of(Path(adapters[number]))["rank_pattern"][row["name"]] for number in row["adapters"]
        )
        name = f"{row['name']}.weight"
        terms = sum(
            abs(weights[number]) * np.linalg.norm(changes(adapters[number], np.abs)[name]) for number in row["adapters"]
        )
        assert row["distance_from_sum"] * np.linalg.norm(exact[name]) <= 2e-7 * terms  # they may cancel in the sum


def test_matrices_of_the_common_scale_are_copied_bit_by_bit(tmp_path: Path) -> None:
    """alpha / r is 2 in both; weights are 1, so there is nothing to round, in bfloat16 neither."""
    layers = {Q: (6, 4, 2), V: (3, 4, 2)}
    a, b = (lora(tmp_path / str(seed), layers, seed, "bfloat16", lora_alpha=4) for seed in (1, 2))
    out, report = merged(tmp_path, a, b)
    tensors, ours = [read(Path(one), "adapter_model") for one in (a, b)], read(out, "adapter_model")
    for name, value in ours.items():
        axis = 0 if "lora_A" in name else 1
        np.testing.assert_array_equal(value, np.concatenate([tensors[0][name], tensors[1][name]], axis))
    assert set(dtypes(out, "adapter_model").values()) == {"bfloat16"}
    assert (settings_of(out)["r"], settings_of(out)["lora_alpha"], report["scale"]) == (4, 8, 2.0)
    assert report["distance_from_sum"] == 0.0


@pytest.mark.parametrize("weight", [0.0011, 900.0])
def test_float16_keeps_the_bits_of_layers_of_other_scales(tmp_path: Path, weight: float) -> None:
    """Each of 0.0011 * 1e-4 would be one of float16's last two numbers above 0; 900 * 100 is beyond its range."""
    a = lora(tmp_path / "a", {Q: (6, 4, 2), OUT: (6, 4, 2)}, 1, "float16")
    generator, size = np.random.default_rng(2), 1e-4 if weight < 1 else 100.0
    factors = {
        f"{V}.lora_A.weight": generator.normal(size=(2, 4)),
        f"{V}.lora_B.weight": size * generator.normal(size=(3, 2)),
    }
    b = peft(tmp_path / "b", factors, "float16", r=2, lora_alpha=2)
    out, report = merged(tmp_path, a, b, weight_list=[1.0, weight])
    assert set(dtypes(out, "adapter_model").values()) == {"float16"}
    expected = total([a, b], [1.0, weight])
    for name, value in changes(out).items():
        assert np.linalg.norm(value - expected[name]) < 2**-11 * np.linalg.norm(expected[name])
    assert [row["distance_from_sum"] > 0 for row in report["layers"]] == [False, False, True]


def test_the_distance_counts_the_rounding_of_both_matrices(tmp_path: Path) -> None:
    a = lora(tmp_path / "a", {Q: (6, 4, 2)}, 1)
    out, report = merged(tmp_path, a, out_dtype="bfloat16")
    expected = total([a], [1.0])[f"{Q}.weight"]
    away = np.linalg.norm(changes(out)[f"{Q}.weight"] - expected) / np.linalg.norm(expected)
    assert report["distance_from_sum"] == pytest.approx(away, rel=1e-6)


def test_a_layer_of_one_adapter_has_its_own_rank(tmp_path: Path) -> None:
    a = lora(tmp_path / "a", {Q: (6, 4, 2)}, 1)
    b = lora(tmp_path / "b", {Q: (6, 4, 2), V: (3, 4, 2)}, 2)
    out, report = merged(tmp_path, a, b)
    config = settings_of(out)
    assert (config["r"], config["rank_pattern"], config["alpha_pattern"]) == (4, {re.escape(V): 2}, {re.escape(V): 2})
    assert config["target_modules"] == ["q_proj", "v_proj"]
    assert [row["adapters"] for row in report["layers"]] == [[0, 1], [1]]
    assert_same(changes(out), total([a, b], [1.0, 1.0]))


def test_patterns_of_ranks_are_of_that_layer_alone(tmp_path: Path) -> None:
    """PEFT takes the keys as regular expressions, of the ends of names."""
    names = {"m.a+b": 1, "m.aab": 2, "n.m.aab": 3, "m_aab": 4}
    out, _ = merged(tmp_path, lora(tmp_path / "a", {name: (6, 4, rank) for name, rank in names.items()}, 1, rank_pattern={
        "^m.a\\+b": 1, "^m\\.aab": 2, "n.m.aab": 3, "m_aab": 4,
    }))  # fmt: skip
    config = settings_of(out)
    for name, rank in names.items():
        matching = [value for key, value in config["rank_pattern"].items() if re.match(rf"(.*\.)?({key})$", name)]
        assert (matching or [config["r"]])[0] == rank


def test_target_modules_are_names_where_words_would_mean_other_layers(tmp_path: Path) -> None:
    a = lora(tmp_path / "a", {Q: (6, 4, 2)}, 1, layers_to_transform=[0])
    b = lora(tmp_path / "b", {Q: (6, 4, 2)}, 2, target_modules=".*q_proj")
    for number, adapters in enumerate(([a, a], [b, b])):
        out, _ = merged(tmp_path / str(number), *adapters)
        assert settings_of(out)["target_modules"] == [Q]


def test_the_config_keeps_what_the_adapters_are_for(tmp_path: Path) -> None:
    a = lora(tmp_path / "a", {Q: (6, 4, 2)}, 1, task_type="SEQ_CLS", base_model_name_or_path="org/base", fan_in_fan_out=True)
    out, _ = merged(tmp_path, a, lora(tmp_path / "b", {Q: (6, 4, 2)}, 2))
    config = settings_of(out)
    assert (config["task_type"], config["base_model_name_or_path"]) == ("SEQ_CLS", "org/base")
    assert (config["peft_type"], config["fan_in_fan_out"], config["bias"]) == ("LORA", True, "none")


def test_biases_of_low_rank_matrices_add_up(tmp_path: Path) -> None:
    """2 * 0.5 * [1, 2, 3] + 3 * [1, 1, 1]; a layer without gets zeros, because PEFT's config speaks of all."""
    bias = {f"{V}.lora_B.bias": np.array([1.0, 2.0, 3.0]), f"{Q}.lora_B.bias": np.zeros(6)}
    a = lora(tmp_path / "a", {V: (3, 4, 2), Q: (6, 4, 2)}, 1, extra=bias, lora_bias=True, lora_alpha=4)
    b = lora(tmp_path / "b", {V: (3, 4, 2)}, 2, extra={f"{V}.lora_B.bias": np.ones(3)}, lora_bias=True, lora_alpha=6)
    c = lora(tmp_path / "c", {OUT: (3, 4, 2)}, 3)
    out, _ = merged(tmp_path, a, b, c, weight_list=[0.5, 1.0, 1.0])
    got = changes(out)
    np.testing.assert_allclose(got[f"{V}.bias"], [4.0, 5.0, 6.0], rtol=1e-6)
    assert got[f"{OUT}.bias"].tolist() == [0.0, 0.0, 0.0]
    assert settings_of(out)["lora_bias"] is True


def test_convolutions(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    adapters = [
        peft(
            tmp_path / str(rank),
            {
                "conv.lora_A.weight": generator.normal(size=(rank, 3, 2, 2)),
                "conv.lora_B.weight": generator.normal(size=(5, rank, 1, 1)),
            },
            "float32",
            r=rank,
        )
        for rank in (1, 2)
    ]
    for number, fields in enumerate(({}, {"rank": 5}, {"merge_method": "task_arithmetic", "rank": 5})):
        out, _ = merged(tmp_path / f"merge-{number}", *adapters, weight_list=[1.0, 0.5], **fields)
        assert_same(changes(out), total(adapters, [1.0, 0.5]))


def test_patterns_of_ranks_mean_one_layer(tmp_path: Path) -> None:
    """PEFT compares patterns with the ends of names, so "proj" alone would also be visual.proj's."""
    a = lora(tmp_path / "a", {"proj": (6, 4, 2), "visual.proj": (6, 4, 2)}, 1)
    b = lora(tmp_path / "b", {"visual.proj": (6, 4, 2)}, 2)
    out, _ = merged(tmp_path, a, b)
    assert settings_of(out)["rank_pattern"] == {"^proj": 2}
    assert_same(changes(out), total([a, b], [1.0, 1.0]))


@pytest.mark.parametrize("fields", [{}, {"rank": 6}])
def test_folded_by_merge(tmp_path: Path, fields: dict[str, Any]) -> None:
    base = llama(0)
    folder = stored(tmp_path / "base", base, "hf", dtype="float32")
    adapters = [lora(tmp_path / str(seed), {Q: (16, 16, 2), V: (8, 16, 3)}, seed, rank_pattern={V: 3}) for seed in (1, 2)]
    out, _ = merged(tmp_path, *adapters, weight_list=[0.3, 0.7], **fields)
    merge(MergeConfig(lora_model_path=str(out), base_model_path=folder, output_path=str(tmp_path / "folded")))
    expected = total(adapters, [0.3, 0.7])
    assert_same(read(tmp_path / "folded"), {name: value + expected.get(name, 0.0) for name, value in base.items()})


# --- cut off -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 3, 5, 50])
def test_svd_is_the_best_approximation_of_its_rank(tmp_path: Path, rank: int) -> None:
    """By NumPy's own decomposition of the sum; b holds the singular values, and a has rows of length 1."""
    adapters = [lora(tmp_path / str(seed), {Q: (9, 7, 2)}, seed, lora_alpha=seed + 1) for seed in (1, 2)]
    out, report = merged(tmp_path, *adapters, rank=rank, weight_list=[0.5, 2.0])
    expected = total(adapters, [0.5, 2.0])[f"{Q}.weight"]
    u, s, vt = np.linalg.svd(expected)
    kept = min(rank, 4)  # of which there are no more
    (row,) = report["layers"]
    assert row["rank"] == kept == settings_of(out)["r"] == settings_of(out)["lora_alpha"]
    np.testing.assert_allclose(changes(out)[f"{Q}.weight"], (u[:, :kept] * s[:kept]) @ vt[:kept], atol=1e-5)
    tensors = read(out, "adapter_model")
    np.testing.assert_allclose(np.linalg.norm(tensors[f"base_model.model.{Q}.lora_B.weight"], axis=0), s[:kept], rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(tensors[f"base_model.model.{Q}.lora_A.weight"], axis=1), 1, rtol=1e-5)
    assert row["kept"] == report["kept"] == pytest.approx((s[:kept] ** 2).sum() / (s**2).sum(), abs=1e-9)
    assert row["lost_norm"] == pytest.approx(np.sqrt((s[kept:] ** 2).sum()), abs=1e-5)
    assert row["change_norm"] == pytest.approx(np.linalg.norm(expected))
    assert row["largest_singular_value"] == pytest.approx(s[0])
    assert row["largest_remaining_singular_value"] == pytest.approx(s[kept] if kept < 4 else 0, abs=1e-6)


def test_the_default_rank_is_the_adapters_highest(tmp_path: Path) -> None:
    a, b = lora(tmp_path / "a", {Q: (9, 7, 2)}, 1), lora(tmp_path / "b", {Q: (9, 7, 3)}, 2, r=3)
    out, _ = merged(tmp_path, a, b, combination_type="svd")
    assert settings_of(out)["r"] == 3


@pytest.mark.parametrize("way", [{}, {"merge_method": "linear", "normalize": False, "weight_list": [1.0, 1.0]}])
@pytest.mark.parametrize(("energy", "rank"), [(0.5, 1), (0.65, 2), (0.9, 3), (1.0, 4)])
def test_energy_takes_the_lowest_rank_that_keeps_it(tmp_path: Path, way: dict[str, Any], energy: float, rank: int) -> None:
    """Singular values 8, 4 of one adapter and 4, 2 of the other, on axes of their own, have squares 64, 16, 16, 4 of 100."""
    eye = np.eye(6)
    adapters = [
        peft(
            tmp_path / str(first),
            {f"{Q}.lora_A.weight": eye[first : first + 2], f"{Q}.lora_B.weight": eye[:, first : first + 2] * values},
            "float32",
            r=2,
            lora_alpha=2,
        )
        for first, values in ((0, [8.0, 4.0]), (2, [4.0, 2.0]))
    ]
    out, report = merged(tmp_path, *adapters, energy=energy, **way)
    assert settings_of(out)["r"] == rank == report["layers"][0]["rank"]
    assert report["kept"] == pytest.approx(np.cumsum([0.64, 0.16, 0.16, 0.04])[rank - 1])
    assert settings_of(merged(tmp_path, *adapters, energy=energy, rank=2, overwrite=True, **way)[0])["r"] == min(rank, 2)


def test_adapters_that_cancel_leave_zeros(tmp_path: Path) -> None:
    a = lora(tmp_path / "a", {Q: (6, 4, 2)}, 1)
    for number, fields in enumerate(({}, {"rank": 2}, {"energy": 0.9}, {"combination_type": "ties_svd", "reserve_p": 0.5})):
        out, report = merged(tmp_path / str(number), a, a, weight_list=[1.0, -1.0], **fields)
        np.testing.assert_allclose(changes(out)[f"{Q}.weight"], 0, atol=1e-12)
        assert report.get("kept", 1.0) == 1.0


# --- by the methods of merge -------------------------------------------------------------------------------------------

METHODS: list[dict[str, Any]] = [
    {"merge_method": "linear"},
    {"merge_method": "linear", "weight_list": [0.6, -0.2], "normalize": False, "scale": 1.5},
    {"merge_method": "slerp", "slerp_alpha": 0.3},
    {"merge_method": "ties", "reserve_p": 0.4, "rescale": False},
    {"merge_method": "dare_ties", "reserve_p": 0.6, "seed": 5, "ties_elect_type": "count"},
    {"merge_method": "della", "reserve_p": 0.6, "epsilon": 0.2, "seed": 5},
    {"merge_method": "breadcrumbs", "reserve_p": 0.8, "method_parameters": ["gamma=0.05"]},
    {"merge_method": "model_stock"},
    {"merge_method": "lines", "method_parameters": ["alpha=0.5", "beta=0.5"]},
    {"merge_method": "tsv"},
]


@pytest.mark.parametrize("fields", METHODS, ids=lambda fields: fields["merge_method"])
def test_methods_do_to_adapters_what_merge_does_to_models(tmp_path: Path, fields: dict[str, Any]) -> None:
    """With all ranks kept, the base with the merged adapter is the merge of the base with each adapter."""
    base = llama(0)
    stored(tmp_path / "base", base, "hf", dtype="float32")
    layers = {
        name.removesuffix(".weight"): (value.shape[0], value.shape[1], 2)
        for name, value in base.items()
        if "_proj" in name and value.ndim == 2
    }
    only = {name: sizes for name, sizes in layers.items() if "q_proj" not in name or "layers.1" in name}
    a, b = lora(tmp_path / "a", layers, 1, "float64"), lora(tmp_path / "b", only, 2, "float64", lora_alpha=5)
    out, report = merged(tmp_path, a, b, rank=100, **fields)
    assert report["kept"] == pytest.approx(1.0, abs=1e-9)
    folder = str(tmp_path / "base")
    models = [f"{folder}+{one}" for one in (a, b)]
    merge(
        MergeConfig(
            model_path_list=models,
            base_model_path=folder,
            output_path=str(tmp_path / "models"),
            out_dtype="float64",
            **fields,
        )
    )
    expected = read(tmp_path / "models")
    got = {name: value + changes(out).get(name, 0.0) for name, value in base.items()}
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=0, atol=1e-6, err_msg=name)
    assert any((got[name] != base[name]).any() for name in base)
