"""Test merges of models with heads over a base that has none, or another one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from paddle_merge import CheckpointError, MergeConfig, merge
from tests.support.checkpoints import read, write

BODY = {"model.embed_tokens.weight": (9, 4), "model.layers.0.mlp.up_proj.weight": (6, 4)}
CONFIG = {"model_type": "llama", "hidden_size": 4, "intermediate_size": 6, "tie_word_embeddings": False}


def model(folder: Path, seed: int, heads: dict[str, tuple[int, ...]], architecture: str) -> str:
    generator = np.random.default_rng(seed)
    tensors = {name: generator.standard_normal(shape) for name, shape in (BODY | heads).items()}
    config = {**CONFIG, "architectures": [architecture]}
    return str(write(folder, tensors, "float64", format="pt", config=config))


@pytest.mark.parametrize("method", ["linear", "ties", "dare_ties"])
def test_reward_models_over_a_language_model(tmp_path: Path, method: str) -> None:
    paths = [model(tmp_path / f"rm{k}", k, {"score.weight": (1, 4)}, "LlamaForSequenceClassification") for k in (1, 2)]
    base = model(tmp_path / "sft", 0, {"lm_head.weight": (9, 4)}, "LlamaForCausalLM")
    out, account = tmp_path / "out", tmp_path / "account.json"
    config = MergeConfig(merge_method=method, model_path_list=paths, base_model_path=base, weight_list=[1.0, 3.0])
    config.output_path, config.account = str(out), str(account)
    merge(config, progress=False)
    result, models = read(out), [read(Path(path)) for path in paths]
    assert result.keys() == BODY.keys() | {"score.weight"}
    np.testing.assert_allclose(result["score.weight"], (models[0]["score.weight"] + models[1]["score.weight"]) / 2)
    assert json.loads((out / "config.json").read_text())["architectures"] == ["LlamaForSequenceClassification"]
    assert '"left_out": "no model has it"' in account.read_text()
    if method == "linear":
        name = "model.layers.0.mlp.up_proj.weight"
        np.testing.assert_allclose(result[name], (models[0][name] + 3 * models[1][name]) / 4)


def test_heads_of_different_sizes_name_modules(tmp_path: Path) -> None:
    paths = [model(tmp_path / f"m{k}", k, {"classifier.weight": (k, 4)}, "BertForSequenceClassification") for k in (2, 3)]
    with pytest.raises(CheckpointError, match=r"modules: \{classifier"):
        merge(MergeConfig(model_path_list=paths, output_path=str(tmp_path / "out")))


def test_a_layer_that_the_base_lacks_is_refused(tmp_path: Path) -> None:
    extra = {"model.layers.1.mlp.up_proj.weight": (6, 4)}
    paths = [model(tmp_path / f"m{k}", k, extra, "LlamaForCausalLM") for k in (1, 2)]
    base = model(tmp_path / "base", 0, {}, "LlamaForCausalLM")
    with pytest.raises(CheckpointError, match="is missing in"):
        merge(MergeConfig(model_path_list=paths, base_model_path=base, output_path=str(tmp_path / "out")))


def test_an_adapter_that_brings_a_head(tmp_path: Path) -> None:
    base = model(tmp_path / "base", 0, {"lm_head.weight": (9, 4)}, "LlamaForCausalLM")
    score = np.arange(4.0)[None]
    lora = write(tmp_path / "lora", {"base_model.model.score.weight": score}, "float64", prefix="adapter_model", format="pt")
    said = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "task_type": "SEQ_CLS", "modules_to_save": ["classifier", "score"]}
    (lora / "adapter_config.json").write_text(json.dumps(said))
    out = tmp_path / "out"
    merge(MergeConfig(lora_model_path=str(lora), base_model_path=base, output_path=str(out)), progress=False)
    np.testing.assert_array_equal(read(out)["score.weight"], score)
    (lora / "adapter_config.json").write_text(json.dumps({**said, "modules_to_save": ["classifier"]}))
    with pytest.raises(CheckpointError, match="was it trained on another model"):
        merge(MergeConfig(lora_model_path=str(lora), base_model_path=base, output_path=str(tmp_path / "no")))


@pytest.mark.parametrize("lost", ["model.embed_tokens.weight", "model.norm.weight"])
def test_a_base_that_lost_what_is_no_head_is_refused(tmp_path: Path, lost: str) -> None:
    paths = [model(tmp_path / f"m{k}", k, {"model.norm.weight": (4,)}, "LlamaForCausalLM") for k in range(3)]
    tensors = {name: values for name, values in read(Path(paths[2])).items() if name != lost}
    base = str(write(tmp_path / "base", tensors, "float64", format="pt", config=CONFIG))
    with pytest.raises(CheckpointError, match="is missing in"):
        merge(MergeConfig(model_path_list=paths[:2], base_model_path=base, output_path=str(tmp_path / "out")))
