"""Test what config.json says of stacked layers, in each of its notations; the expected values are worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_merge import MergeConfig, merge
from tests.support.checkpoints import write

# Layers 0 1 2 | 1 2 3 of models of four layers, unless said otherwise.
FULL, SLIDING = "full_attention", "sliding_attention"
SOLAR = [("a", 0, 3), ("a", 1, 4)]


def model(folder: Path, config: dict[str, Any], layers: int = 4, nested: bool = False) -> str:
    tensors = {f"model.layers.{number}.mlp.up_proj.weight": np.full((2, 3), float(number)) for number in range(layers)}
    config = {"num_hidden_layers": layers, **config}
    return str(write(folder, tensors, config={"text_config": config} if nested else config))


def stack(
    tmp_path: Path, parts: list[tuple[str, int, int]], configs: dict[str, dict[str, Any]], nested: bool = False
) -> dict[str, Any]:
    folders = {name: model(tmp_path / name, config, nested=nested) for name, config in configs.items()}
    sources = [{"sources": [{"model": folders[name], "layer_range": [first, stop]}]} for name, first, stop in parts]
    recipe = json.dumps({"slices": sources, "merge_method": "passthrough"}) + "\n"
    merge(MergeConfig(recipe_yaml=recipe, output_path=str(tmp_path / "out")), progress=False)
    told: dict[str, Any] = json.loads((tmp_path / "out" / "config.json").read_text())
    return told


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"layer_types": ["s", "s", "f", "s"]}, {"layer_types": ["s", "s", "f", "s", "f", "s"]}),
        ({"no_rope_layers": [1, 0, 1, 0]}, {"no_rope_layers": [1, 0, 1, 0, 1, 0]}),
        ({"num_kv_heads": [1, 2, 3, 4]}, {"num_kv_heads": [1, 2, 3, 2, 3, 4]}),
        ({"mlp_only_layers": [0, 3]}, {"mlp_only_layers": [0, 5]}),
        ({"mlp_only_layers": []}, {"mlp_only_layers": []}),
        ({"moe_layers": [0, 1, 2, 3]}, {"moe_layers": [0, 1, 2, 3, 4, 5]}),  # as long as the model is deep, and yet numbers
        ({"max_window_layers": 28, "use_sliding_window": False}, {"max_window_layers": 6}),
        ({"first_k_dense_replace": 1}, {"first_k_dense_replace": 1}),
        (
            {"max_window_layers": 2, "use_sliding_window": True},
            {"max_window_layers": 2, "layer_types": [FULL, FULL, SLIDING, FULL, SLIDING, SLIDING]},
        ),
        ({"block_configs": [{"n": n} for n in range(4)]}, {"block_configs": [{"n": n} for n in (0, 1, 2, 1, 2, 3)]}),
        ({"per_layer_config": {"1": "x", "3": "y"}}, {"per_layer_config": {"1": "x", "3": "x", "5": "y"}}),
        ({"hybrid_layer_ids": [1, 3]}, {"hybrid_layer_ids": [1, 3, 5]}),
        ({"kv_source_layers": [0, 2]}, {"kv_source_layers": [0, 2, 4]}),
        ({"block_types": ["r", "a"]}, {"block_types": ["r", "a", "r", "a", "r", "a"]}),
        (
            {"moe_layer_start_index": 1, "moe_layer_end_index": 3, "moe_layer_interval": 1},
            {"moe_layer_start_index": 1, "moe_layer_end_index": 5, "moe_layer_interval": 1},
        ),
        # None of these says something of each layer.
        ({"architectures": ["A", "B", "C", "D"], "eos_token_id": [1, 2, 3, 4]}, {"eos_token_id": [1, 2, 3, 4]}),
        ({"rope_scaling": {"long_factor": [1, 2, 3, 4]}}, {"rope_scaling": {"long_factor": [1, 2, 3, 4]}}),
        ({"sizes": [1, 2, 3]}, {"sizes": [1, 2, 3]}),
        ({"bad_words_token_ids": [0, 1]}, {"bad_words_token_ids": [0, 1]}),
        ({"id2label": {"0": "no", "1": "yes"}}, {"id2label": {"0": "no", "1": "yes"}}),
        ({"vocab_size": [10], "moe_layer_start_index": "a", "mlp_only_layers": None}, {"vocab_size": [10]}),
    ],
)  # fmt: skip
def test_kinds_of_layers(
    tmp_path: Path, config: dict[str, Any], expected: dict[str, Any], nested: bool, caplog: pytest.LogCaptureFixture
) -> None:
    told = stack(tmp_path, SOLAR, {"a": config}, nested)
    told = told["text_config"] if nested else told
    assert told["num_hidden_layers"] == 6
    assert {name: told[name] for name in expected} == expected
    assert "layer_types" in expected or "layer_types" not in told
    assert not any("kind" in message for message in caplog.messages)


def test_each_layers_kind_is_its_own_models(tmp_path: Path) -> None:
    configs = {"a": {"layer_types": list("stuv"), "first_k_dense_replace": 2}, "b": {"layer_types": list("wxyz")}}
    told = stack(tmp_path, [("a", 0, 2), ("b", 1, 4), ("a", 3, 4)], configs)
    assert told["layer_types"] == list("stxyzv")


def test_whole_models_keep_their_config(tmp_path: Path) -> None:
    config = {"layer_types": list("ssfs"), "sliding_window_pattern": 3, "mlp_only_layers": [1]}
    before = json.loads(Path(model(tmp_path / "a", config), "config.json").read_text())
    assert stack(tmp_path, [("a", 0, 4)], {"a": config}) == {**before, "torch_dtype": "float32"}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"sliding_window_pattern": 2}, None),  # all layers of the second part moved by two
        ({"sliding_window_pattern": 3}, "sliding_window_pattern 3: layer 3 of the output was layer 1"),
        ({"sliding_window_pattern": 3, "layer_types": list("sfsf")}, None),
        ({"decoder_sparse_step": 1}, None),
        ({"decoder_sparse_step": 4}, "decoder_sparse_step 4: layer 3 of the output was layer 1"),
        ({"model_type": "gemma2"}, None),
        ({"first_k_dense_replace": 2}, "'first_k_dense_replace' of config.json gives how many of the first layers"),
    ],
)
def test_what_config_json_can_not_say(
    tmp_path: Path, config: dict[str, Any], said: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    stack(tmp_path, SOLAR, {"a": config})
    found = [message for message in caplog.messages if "kind" in message]
    assert len(found) == (said is not None)
    assert said is None or said in found[0]


def test_gemma2_alternates_though_its_config_may_not_say_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stack(tmp_path, [("a", 0, 3), ("a", 2, 4)], {"a": {"model_type": "gemma2"}})
    assert "layer 3 of the output was layer 2 and changes its kind; move layers by multiples of 2" in caplog.text


def test_a_list_that_does_not_reach_all_layers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model(tmp_path / "deep", {}, layers=6)
    model(tmp_path / "a", {"layer_types": list("sfsf")})
    parts = [("a", 0, 4), ("deep", 4, 6)]
    sources = [{"sources": [{"model": str(tmp_path / name), "layer_range": [i, j]}]} for name, i, j in parts]
    recipe = json.dumps({"slices": sources, "merge_method": "passthrough"}) + "\n"
    merge(MergeConfig(recipe_yaml=recipe, output_path=str(tmp_path / "out")), progress=False)
    assert "'layer_types' of config.json gives the kind of each layer, but not of every layer of the output" in caplog.text


def test_layers_of_one_kind_with_others_between(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """0 1 2 | 1 2 3 of layers of which 2 and 3 are of the kind: places 2, 4 and 5."""
    told = stack(tmp_path, SOLAR, {"a": {"moe_layer_start_index": 2, "moe_layer_end_index": 3}})
    assert (told["moe_layer_start_index"], told["moe_layer_end_index"]) == (2, 5)
    assert "give the first and the last layer of one kind, and in the output others lie between" in caplog.text


def test_an_entry_that_may_count_layers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stack(tmp_path, SOLAR, {"a": {"num_cached_layers": 4}})
    assert "'num_cached_layers' of config.json is 4, as many as there were layers" in caplog.text


@pytest.mark.parametrize(("name", "section"), [("vit.encoder.layer", ""), ("decoder.layers", "decoder_config")])
def test_where_depths_are_written(tmp_path: Path, name: str, section: str) -> None:
    tensors = {f"{name}.{number}.w": np.ones((2, 3)) for number in range(4)}
    depth = {"num_hidden_layers": 4}
    write(tmp_path / "m", tensors, config={section: depth} if section else depth)
    recipe = f"slices: [{{sources: [{{model: {tmp_path}/m, layer_range: [1, 3]}}]}}]\nmerge_method: passthrough\n"
    merge(MergeConfig(recipe_yaml=recipe, output_path=str(tmp_path / "out")), progress=False)
    told = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (told[section] if section else told)["num_hidden_layers"] == 2


def test_the_encoders_list_stays_when_the_decoder_is_cut(tmp_path: Path) -> None:
    """LED, whose two stacks are as deep."""
    names = [f"model.{one}.layers.{number}.w" for one in ("encoder", "decoder") for number in range(4)]
    config = {"encoder_layers": 4, "decoder_layers": 4, "attention_window": [1, 2, 3, 4]}
    write(tmp_path / "m", {name: np.ones((2, 3)) for name in names}, config=config)
    recipe = f"""
modules:
  model.decoder: {{slices: [{{sources: [{{model: {tmp_path}/m, layer_range: [1, 3]}}]}}]}}
  model.encoder: {{models: [{{model: {tmp_path}/m}}]}}
merge_method: passthrough
"""
    merge(MergeConfig(recipe_yaml=recipe, output_path=str(tmp_path / "out")), progress=False)
    told = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (told["decoder_layers"], told["encoder_layers"], told["attention_window"]) == (2, 4, [1, 2, 3, 4])
