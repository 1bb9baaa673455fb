"""Test merge-lora: what the merged adapter adds to the base is what the adapters add, weighed, by formulas written here."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddle_merge import (
    CheckpointError,
    ConfigError,
    MergeConfig,
    MergeLoraConfig,
    OutputError,
    merge,
    merge_lora,
)
from paddle_merge.commands.main import main
from tests.conversion.lora.test_lora import paddle, peft
from tests.conversion.test_layout import State, llama, stored
from tests.support.checkpoints import dtypes, read

Q, V, OUT = (f"model.layers.0.self_attn.{word}_proj" for word in "qvo")
EMBEDDING = "model.embed_tokens"


def lora(
    folder: Path,
    layers: dict[str, tuple[int, int, int]],
    seed: int,
    dtype: str = "float32",
    extra: State | None = None,
    **config: Any,
) -> str:
    """An adapter of PEFT. layers: module -> (outputs, inputs, rank)."""
    generator = np.random.default_rng(seed)
    tensors = dict(extra or {})
    for name, (outputs, inputs, rank) in layers.items():
        a, b = generator.normal(size=(rank, inputs)), generator.normal(size=(outputs, rank))
        if name == EMBEDDING:
            tensors |= {f"{name}.lora_embedding_A": a, f"{name}.lora_embedding_B": b}
        else:
            tensors |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
    words = sorted({name.rpartition(".")[2] for name in layers})
    return peft(folder, tensors, dtype, **{"r": 2, "lora_alpha": 2, "target_modules": words, **config})


def changes(folder: str | Path) -> State:
    """What an adapter of PEFT adds to each weight, and what it holds whole, by FORMATS' formulas, in float64."""
    folder, found = Path(folder), State()
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = {name.removeprefix("base_model.model."): value for name, value in read(folder, "adapter_model").items()}
    for name, a in tensors.items():
        module, _, word = name.removesuffix(".weight").rpartition(".")
        if word not in ("lora_A", "lora_embedding_A"):
            if not word.startswith("lora_") and ".lora_" not in name:
                found[name] = a
            continue
        r, alpha = config["r"], config["lora_alpha"]
        for pattern, value in config.get("rank_pattern", {}).items():
            r = value if re.match(rf"(.*\.)?({pattern})$", module) else r
        for pattern, value in config.get("alpha_pattern", {}).items():
            alpha = value if re.match(rf"(.*\.)?({pattern})$", module) else alpha
        scale = alpha / (r**0.5 if config.get("use_rslora") else r)
        b = tensors[name.replace("_A", "_B")]
        assert a.shape[0] == b.shape[1] == r
        product = (b.reshape(len(b), -1) @ a.reshape(len(a), -1)).reshape(len(b), *a.shape[1:])
        found[f"{module}.weight"] = scale * (product.T if "embedding" in word else product)
        if f"{module}.lora_B.bias" in tensors:
            found[f"{module}.bias"] = scale * tensors[f"{module}.lora_B.bias"]
    return found


def total(folders: list[str], weights: list[float]) -> State:
    """The exact weighted sum of the adapters' changes."""
    found = State()
    for folder, weight in zip(folders, weights, strict=True):
        for name, value in changes(folder).items():
            found[name] = found.get(name, 0.0) + weight * value
    return found


def assert_same(got: State, expected: State, tolerance: float = 1e-6) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=0, atol=tolerance * max(1.0, np.abs(value).max()), err_msg=name)


def merged(folder: Path, *adapters: str, **fields: Any) -> tuple[Path, dict[str, Any]]:
    out = folder / "out"
    return out, merge_lora(MergeLoraConfig(adapter_path_list=list(adapters), output_path=str(out), **fields))


def settings_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text())
    return content


# --- the exact sum -----------------------------------------------------------------------------------------------------


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
    assert_same(changes(out), total(adapters, weights))
    for row in report["layers"]:
        assert row["rank"] == sum(
            settings_of(Path(adapters[number]))["rank_pattern"][row["name"]] for number in row["adapters"]
        )
        assert row["distance_from_sum"] < 2e-7


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


def test_a_layer_of_one_adapter_has_its_own_rank(tmp_path: Path) -> None:
    a = lora(tmp_path / "a", {Q: (6, 4, 2)}, 1)
    b = lora(tmp_path / "b", {Q: (6, 4, 2), V: (3, 4, 2)}, 2)
    out, report = merged(tmp_path, a, b)
    config = settings_of(out)
    assert (config["r"], config["rank_pattern"], config["alpha_pattern"]) == (4, {V: 2}, {V: 2})
    assert config["target_modules"] == ["q_proj", "v_proj"]
    assert [row["adapters"] for row in report["layers"]] == [[0, 1], [1]]
    assert_same(changes(out), total([a, b], [1.0, 1.0]))


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


# --- tensors that are stored whole --------------------------------------------------------------------------------------

HEAD = "lm_head.weight"
NEEDS_BASE = "so what training changed has to be known: give --base_model_path"


def with_head(folder: Path, seed: int, head: np.ndarray, **config: Any) -> str:
    return lora(folder, {Q: (16, 16, 2)}, seed, extra={HEAD: head}, modules_to_save=["lm_head"], **config)


def test_whole_tensors_by_weights_that_add_up_to_1(tmp_path: Path) -> None:
    """0.25 * 4 + 0.75 * 8 = 7, whatever the base has."""
    a, b = (with_head(tmp_path / str(seed), seed, np.full((40, 16), 4.0 * seed)) for seed in (1, 2))
    out, report = merged(tmp_path, a, b, weight_list=[0.25, 0.75])
    assert (changes(out)[HEAD] == 7.0).all()
    assert settings_of(out)["modules_to_save"] == ["lm_head"]
    assert report["whole"] == [{"name": HEAD, "shape": [40, 16], "adapters": [0, 1], "copied": False}]


def test_a_whole_tensor_of_one_adapter_of_weight_1_stays(tmp_path: Path) -> None:
    head = np.random.default_rng(0).normal(size=(40, 16)).astype(np.float32)
    a, b = with_head(tmp_path / "a", 1, head), lora(tmp_path / "b", {Q: (16, 16, 2)}, 2)
    np.testing.assert_array_equal(changes(merged(tmp_path, a, b)[0])[HEAD], head)


def test_whole_tensors_that_nobody_trained_are_copied(tmp_path: Path) -> None:
    head = np.random.default_rng(0).normal(size=(40, 16))
    a, b = (with_head(tmp_path / str(seed), seed, head) for seed in (1, 2))
    out, report = merged(tmp_path, a, b)
    np.testing.assert_array_equal(changes(out)[HEAD], read(Path(a), "adapter_model")[f"base_model.model.{HEAD}"])
    assert report["whole"][0]["copied"]


@pytest.mark.parametrize("layout", ["hf", "paddlenlp"])
def test_whole_tensors_with_the_base(tmp_path: Path, layout: str) -> None:
    """base + 2 * (4 - base) - 1 * (8 - base) = 0; and with a method, base + the mean of the two changes and of none."""
    base = llama(0)
    folder = stored(tmp_path / "base", base, layout, dtype="float32")
    a, b = (with_head(tmp_path / str(seed), seed, np.full((40, 16), 4.0 * seed)) for seed in (1, 2))
    out, _ = merged(tmp_path, a, b, weight_list=[2.0, -1.0], base_model_path=folder)
    np.testing.assert_allclose(changes(out)[HEAD], 0.0 * base[HEAD], atol=1e-6)
    c = lora(tmp_path / "c", {Q: (16, 16, 2)}, 3)
    out, _ = merged(tmp_path / "method", a, b, c, merge_method="linear", base_model_path=folder)
    np.testing.assert_allclose(changes(out)[HEAD], (4.0 + 8.0 + base[HEAD]) / 3, rtol=1e-6)


def test_biases_that_were_trained(tmp_path: Path) -> None:
    """PEFT's bias: lora_only stores the bias of an adapted layer."""
    adapters = [
        lora(
            tmp_path / str(seed),
            {Q: (6, 4, 2)},
            seed,
            extra={f"{Q}.base_layer.bias": np.full(6, float(seed))},
            bias="lora_only",
        )
        for seed in (1, 2)
    ]
    out, _ = merged(tmp_path, *adapters, weight_list=[0.5, 0.5])
    assert (read(out, "adapter_model")[f"base_model.model.{Q}.base_layer.bias"] == 1.5).all()
    assert settings_of(out)["bias"] == "all"


def test_the_base_layer_that_peft_saves_beside_an_embedding_is_copied(tmp_path: Path) -> None:
    table = np.random.default_rng(0).normal(size=(7, 5))
    frozen = {f"{EMBEDDING}.base_layer.weight": table}
    a = lora(tmp_path / "a", {EMBEDDING: (5, 7, 2)}, 1, extra=frozen)
    b = lora(tmp_path / "b", {Q: (6, 4, 2)}, 2)
    out, _ = merged(tmp_path, a, b, weight_list=[0.5, 0.5])
    name = f"base_model.model.{EMBEDDING}.base_layer.weight"
    np.testing.assert_array_equal(read(out, "adapter_model")[name], read(Path(a), "adapter_model")[name])
    other = lora(tmp_path / "c", {EMBEDDING: (5, 7, 2)}, 1, extra={f"{EMBEDDING}.base_layer.weight": table + 1})
    with pytest.raises(CheckpointError, match="is the base model's in each adapter, and differs"):
        merged(tmp_path / "other", a, other)


@pytest.mark.parametrize(
    "fields", [{}, {"weight_list": [0.5, 0.6]}, {"merge_method": "ties", "weight_list": [0.5, 0.5]}], ids=str
)
def test_whole_tensors_need_the_base_where_it_counts(tmp_path: Path, fields: dict[str, Any]) -> None:
    a, b = (with_head(tmp_path / str(seed), seed, np.full((40, 16), 4.0 * seed)) for seed in (1, 2))
    with pytest.raises(CheckpointError, match=NEEDS_BASE):
        merged(tmp_path, a, b, **fields)


# --- formats -----------------------------------------------------------------------------------------------------------


def of_paddle(folder: Path, prefix: str, rank: int, seed: int, **config: Any) -> tuple[str, State]:
    """An adapter of Paddle, and what it adds to each weight, as [outputs, inputs]."""
    generator, tensors, found = np.random.default_rng(seed), State(), State()
    config = {"r": rank, "lora_alpha": 3, "target_modules": [".*q_proj"], **config}
    scale = 3 / (rank**0.5 if config.get("rslora") else rank)
    for layer in range(2):
        name = f"{prefix}.layers.{layer}.self_attn.q_proj"
        a, b = (generator.normal(size=shape).astype(np.float32) for shape in ((16, rank), (rank, 16)))
        tensors |= {f"{name}.lora_A": a, f"{name}.lora_B": b}
        found[f"model.layers.{layer}.self_attn.q_proj.weight"] = scale * (a.astype(np.float64) @ b).T
    return paddle(folder, tensors, **config), found


def changes_of_paddle(folder: Path) -> State:
    config, tensors = json.loads((folder / "lora_config.json").read_text()), read(folder, "peft_model")
    assert config["scaling"] == pytest.approx(config["lora_alpha"] / config["r"])
    found = State()
    for name, a in tensors.items():
        if name.endswith(".lora_A"):
            assert a.shape[1] == config["r"]
            module = name.removesuffix(".lora_A")
            short = module.partition(".")[2]
            found[f"model.{short}.weight"] = config["scaling"] * (a @ tensors[f"{module}.lora_B"]).T
    return found


@pytest.mark.parametrize(("prefix", "format"), [("llama", "paddlenlp"), ("model", "paddleformers")])
def test_adapters_of_paddle(tmp_path: Path, prefix: str, format: str) -> None:
    (a, one), (b, two) = of_paddle(tmp_path / "a", prefix, 2, 1), of_paddle(tmp_path / "b", prefix, 3, 2, rslora=True)
    for number, fields in enumerate(({}, {"rank": 9})):
        out, report = merged(tmp_path / str(number), a, b, weight_list=[0.5, -1.0], **fields)
        assert report["format"] == format
        assert_same(changes_of_paddle(out), {name: 0.5 * one[name] - two[name] for name in one})
        config = json.loads((out / "lora_config.json").read_text())
        assert (config["r"], config["target_modules"], config["trainable_modules"]) == (5, [".*q_proj"], None)
        assert (out / "peft_model.safetensors.index.json").exists()


def test_mixers_are_multiplied_in(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    tensors = {
        f"llama.q.lora_{key}": generator.normal(size=shape) for key, shape in (("A", (4, 2)), ("AB", (2, 2)), ("B", (2, 6)))
    }
    mixed = paddle(tmp_path / "b", tensors, lora_use_mixer=True, r=2, lora_alpha=2)
    out, _ = merged(tmp_path, mixed, mixed, weight_list=[1.0, 1.0])
    expected = 2 * (tensors["llama.q.lora_A"] @ tensors["llama.q.lora_AB"] @ tensors["llama.q.lora_B"]).T
    np.testing.assert_allclose(changes_of_paddle(out)["model.q.weight"], expected, rtol=1e-6)


@pytest.mark.parametrize("format", ["peft", "paddlenlp", "paddleformers"])
def test_adapters_of_different_libraries_with_the_base(tmp_path: Path, format: str) -> None:
    folder = stored(tmp_path / "base", llama(0), "hf", dtype="float32")
    a, one = of_paddle(tmp_path / "a", "llama", 2, 1)
    c, two = of_paddle(tmp_path / "c", "model", 1, 3)
    b = lora(tmp_path / "b", {f"model.layers.{layer}.self_attn.q_proj": (16, 16, 2) for layer in (0, 1)}, 2)
    out, _ = merged(tmp_path, a, b, c, base_model_path=folder, format=format, weight_list=[1.0, 0.5, 2.0])
    third = changes(b)
    expected = {name: one[name] + 0.5 * third[name] + 2 * two[name] for name in one}
    assert_same(changes(out) if format == "peft" else changes_of_paddle(out), expected)
    tensors = read(out, "adapter_model" if format == "peft" else "peft_model")
    prefix = {"peft": "base_model.model.model.", "paddlenlp": "llama.", "paddleformers": "model."}[format]
    assert all(name.startswith(f"{prefix}layers.") for name in tensors)


def test_a_fused_adapter_is_taken_apart_as_the_base_is(tmp_path: Path) -> None:
    """PaddleNLP's qkv_proj has, for each of 2 key heads, 2 queries, a key and a value of width 4."""
    folder = stored(tmp_path / "base", llama(0), "hf", dtype="float32")
    name, generator = "llama.layers.0.self_attn.qkv_proj", np.random.default_rng(0)
    left, right = generator.normal(size=(16, 2)), generator.normal(size=(2, 32))
    fused = paddle(tmp_path / "a", {f"{name}.lora_A": left, f"{name}.lora_B": right}, r=2, lora_alpha=2)
    out, _ = merged(tmp_path, fused, base_model_path=folder, format="peft")
    groups = (left @ right).T.reshape(2, 4, 4, 16)
    got = {name.split(".")[-2][0]: value for name, value in changes(out).items()}
    np.testing.assert_allclose(got["q"], groups[:, :2].reshape(16, 16), atol=1e-6)
    np.testing.assert_allclose(got["k"], groups[:, 2].reshape(8, 16), atol=1e-6)
    np.testing.assert_allclose(got["v"], groups[:, 3].reshape(8, 16), atol=1e-6)


# --- what is refused ---------------------------------------------------------------------------------------------------


def test_all_problems_at_once(tmp_path: Path) -> None:
    fields = {"weight_list": [1.0], "energy": 2.0, "merge_method": "ties", "combination_type": "cat", "rank": 0}
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").touch()
    with pytest.raises(ConfigError) as error:
        merged(tmp_path, str(tmp_path / "none"), str(tmp_path / "neither"), **fields)
    text = str(error.value)
    for sentence in (
        "--weight_list has 1 numbers for 2 adapters",
        "--energy 2 must be above 0",
        "two ways to merge",
        "--rank 0 must be at least 1",
        "none: no such folder",
        "neither: no such folder",
        "is not empty",
    ):
        assert sentence in text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"combination_type": "ties"}, "needs --density"),
        ({"reserve_p": 0.5}, "--density has no effect with --combination_type cat"),
        ({"combination_type": "ties", "reserve_p": 1.5}, "must be above 0 and at most 1"),
        ({"combination_type": "linear", "rank": 2}, "use svd"),
        ({"combination_type": "dare_ties", "reserve_p": 0.5, "energy": 0.5}, "use dare_ties_svd"),
        ({"majority_sign_method": "frequency"}, "no effect with --combination_type cat"),
        ({"scale": 2.0, "normalize": False}, "--normalize, --scale: for --merge_method only"),
        ({"merge_method": "nearswap"}, "have none in common"),
        ({"merge_method": "breadcrumbs", "method_parameters": ["gama=1"]}, "gama"),
        ({"merge_method": "lines"}, "needs --method_parameters alpha="),
        ({"merge_method": "ties", "majority_sign_method": "frequency"}, "--ties_elect_type"),
        ({"layout": "hf"}, "so it needs --base_model_path"),
        ({"combination_type": "tie"}, "must be one of"),
        ({"weight_list": [1e-40, 1.0]}, "too small for float32"),
    ],
)
def test_flags_that_contradict(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    adapters = [lora(tmp_path / str(seed), {Q: (6, 4, 2)}, seed) for seed in (1, 2)]
    with pytest.raises(ConfigError, match=re.escape(message)):
        merged(tmp_path, *adapters, **fields)
    assert not (tmp_path / "out").exists()


A, B = f"{Q}.lora_A.weight", f"{Q}.lora_B.weight"
PAIR = {A: np.ones((2, 4)), B: np.ones((6, 2))}
REFUSED: list[tuple[State, dict[str, Any], str]] = [
    ({**PAIR, f"{Q}.lora_magnitude_vector": np.ones(6)}, {"use_dora": True}, "has DoRA's magnitudes"),
    ({**PAIR, f"{EMBEDDING}.token_adapter.trainable_tokens_delta": np.ones((1, 4))},
     {"trainable_token_indices": [3]}, "replaces rows of single tokens"),
    (PAIR, {"target_parameters": ["mlp.experts.down_proj"]}, "adapts stacks of experts"),
    (PAIR, {"init_lora_weights": "pissa"}, "can't be merged: it was initialised with init_lora_weights 'pissa'"),
    (PAIR, {"peft_type": "VERA"}, "can't be merged: its config has peft_type 'VERA'"),
    ({A: np.ones((2, 4))}, {}, "has no lora_B"),
    ({A: np.ones((2, 4)), B: np.ones((6, 3))}, {}, "different ranks, 2 and 3"),
    ({A: np.ones((3, 4)), B: np.ones((6, 3))}, {}, "has rank 3, but the adapter's config says 2"),
    ({A: np.ones((2, 5)), B: np.ones((6, 2))}, {}, "were they trained on one model?"),
    ({A: np.array([[np.nan] * 4] * 2), B: np.ones((6, 2))}, {}, "holds NaN or Inf"),
    ({}, {}, "holds no tensors"),
]  # fmt: skip


@pytest.mark.parametrize(("tensors", "config", "message"), REFUSED, ids=[message for *_, message in REFUSED])
def test_adapters_that_are_refused(tmp_path: Path, tensors: State, config: dict[str, Any], message: str) -> None:
    bad = peft(tmp_path / "bad", tensors, "float32", **{"r": 2, **config})
    with pytest.raises(CheckpointError, match=re.escape(message)):
        merged(tmp_path, lora(tmp_path / "good", {Q: (6, 4, 2)}, 1), bad)
    assert not (tmp_path / "out").exists()


def test_fused_and_separate_layers_need_the_base(tmp_path: Path) -> None:
    a, b = lora(tmp_path / "a", {"m.qkv_proj": (6, 4, 2)}, 1), lora(tmp_path / "b", {"m.k_proj": (2, 4, 2)}, 2)
    with pytest.raises(CheckpointError, match=r"'m\.k_proj', a part of it; give --base_model_path"):
        merged(tmp_path, a, b)


def test_other_formats_need_the_base(tmp_path: Path) -> None:
    a, (b, _) = lora(tmp_path / "a", {Q: (16, 16, 2)}, 1), of_paddle(tmp_path / "b", "llama", 2, 1)
    with pytest.raises(CheckpointError, match=r"are of different libraries .*give --format"):
        merged(tmp_path, a, b)
    with pytest.raises(CheckpointError, match="names layers otherwise; give --base_model_path"):
        merged(tmp_path, a, b, format="peft")
    with pytest.raises(CheckpointError, match="names layers otherwise; give --base_model_path"):
        merged(tmp_path, a, format="paddlenlp")


def test_layers_that_the_base_lacks(tmp_path: Path) -> None:
    folder = stored(tmp_path / "base", llama(0), "hf", dtype="float32")
    a = lora(tmp_path / "a", {"model.layers.7.self_attn.q_proj": (16, 16, 2)}, 1)
    b = lora(tmp_path / "b", {Q: (12, 16, 2)}, 1)
    with pytest.raises(CheckpointError) as error:
        merged(tmp_path, a, b, base_model_path=folder)
    assert "doesn't have; was it trained on another model?" in str(error.value)
    assert "is for a weight of 16 inputs and 12 outputs" in str(error.value)


def test_ranks_that_differ_factor_by_factor(tmp_path: Path) -> None:
    a, b = lora(tmp_path / "a", {Q: (6, 4, 2)}, 1), lora(tmp_path / "b", {Q: (6, 4, 3)}, 2, r=3)
    with pytest.raises(CheckpointError, match=r"has ranks 2, 3, .* use ties_svd, or cat"):
        merged(tmp_path, a, b, combination_type="ties", reserve_p=0.5)


def test_an_embedding_for_paddle(tmp_path: Path) -> None:
    folder = stored(tmp_path / "base", llama(0), "hf", dtype="float32")
    a = lora(tmp_path / "a", {EMBEDDING: (16, 40, 2)}, 1)
    with pytest.raises(CheckpointError, match="is an embedding, which only PEFT has with low-rank matrices"):
        merged(tmp_path, a, base_model_path=folder, format="paddlenlp")


def test_overflow_is_told(tmp_path: Path) -> None:
    a = peft(tmp_path / "a", {A: np.ones((2, 4)), B: np.full((6, 2), 6e4)}, "float16", r=2, lora_alpha=2)
    b = peft(tmp_path / "b", {A: np.ones((2, 4)), B: np.full((6, 2), 6e4)}, "float16", r=2, lora_alpha=2)
    with pytest.raises(CheckpointError, match="overflow float16; give another --out_dtype"):
        merged(tmp_path, a, a, b, weight_list=[1.0, 1.0, 2.0])
    out, _ = merged(tmp_path, a, a, b, weight_list=[1.0, 1.0, 2.0], out_dtype="float32")
    assert_same(changes(out), total([a, a, b], [1.0, 1.0, 2.0]))


# --- the command -------------------------------------------------------------------------------------------------------


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapters = [lora(tmp_path / str(seed), {Q: (6, 4, 2)}, seed) for seed in (1, 2)]
    words = ["merge-lora", *adapters, "--weight_list", "0.5", "-0.5", "--combination_type", "ties", "--density", "0.5"]
    with pytest.raises(SystemExit) as end:
        main([*words, "--output_path", str(tmp_path / "out"), "--dry_run"])
    assert end.value.code == 0
    assert not (tmp_path / "out").exists()
    assert "merge    ties of 0.5 * " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*words, "--output_path", str(tmp_path / "out"), "--quiet"])
    assert json.loads((tmp_path / "out" / "merge_lora_report.json").read_text())["reserve_p"] == 0.5


def test_the_same_bytes_again(tmp_path: Path) -> None:
    adapters = [lora(tmp_path / str(seed), {Q: (60, 40, 2), V: (9, 40, 2)}, seed) for seed in (1, 2)]
    prints = set()
    for number in range(2):
        out, _ = merged(
            tmp_path / str(number), *adapters, merge_method="dare_ties", seed=3, rank=4, n_process=1 + 2 * number
        )
        prints.add(hashlib.sha256((out / "adapter_model.safetensors").read_bytes()).hexdigest())
    assert len(prints) == 1


def test_warnings(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    zero = peft(tmp_path / "zero", {A: np.ones((2, 4)), B: np.zeros((6, 2))}, "float32", r=2, base_model_name_or_path="x")
    a = lora(tmp_path / "a", {Q: (6, 4, 2)}, 1, base_model_name_or_path="y")
    with caplog.at_level("WARNING", "paddle_merge"):
        merged(tmp_path, zero, a, a)
    assert "every lora_B is zero" in caplog.text
    assert "different base models: x, y" in caplog.text
    assert "given twice" in caplog.text


def test_a_failure_while_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from paddle_merge.run.output.disk import ShardFiles

    a = lora(tmp_path / "a", {Q: (6, 4, 2)}, 1)
    out, _ = merged(tmp_path, a)
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ShardFiles, "write", fail)
    with pytest.raises(OutputError, match="No space left"):
        merged(tmp_path, a, overwrite=True, weight_list=[2.0])
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


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
