"""Test expert-stats and smaller mixtures of experts with transformers: statistics are those that NumPy computes of what each
mixture is given, and a model with fewer experts is the whole one whose router never chooses the others.

test_loaders.py says how the libraries are named.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_merge import MergeConfig, merge
from tests.loaders.test_language_models import TEXTS, word_tokenizer
from tests.loaders.test_loaders import pytestmark  # noqa: F401
from tests.support import libraries
from tests.support.checkpoints import read

EXPERTS, TOP, KEPT, SCALING = 8, 2, 4, 1.5
COMMON = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": TOP,
    "moe_intermediate_size": 12,
    "initializer_range": 0.3,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": EXPERTS},
    "qwen3_moe": {"num_experts": EXPERTS, "norm_topk_prob": True, "head_dim": 4},
    "qwen2_moe": {"num_experts": EXPERTS, "norm_topk_prob": False, "shared_expert_intermediate_size": 12},
    "deepseek_v3": {
        "n_routed_experts": EXPERTS,
        "n_shared_experts": 1,
        "n_group": 2,
        "topk_group": 1,
        "routed_scaling_factor": SCALING,
        "norm_topk_prob": True,
        "first_k_dense_replace": 1,
        "num_key_value_heads": 4,
        "q_lora_rank": None,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "v_head_dim": 4,
    },
}
# Stacked in the files, with biases; what expert-stats measures of it isn't computed here in NumPy.
STACKED = {"gpt_oss": {"num_local_experts": EXPERTS, "head_dim": 4, "intermediate_size": 12}}
WORDS = {"mixtral": ("block_sparse_moe", "w1", "w3", "w2")}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smaller")
    tokenizer = word_tokenizer()
    size = tokenizer.get_vocab_size()
    jobs = {
        family: {"model_type": family, **COMMON, "vocab_size": size, **own} for family, own in (FAMILIES | STACKED).items()
    }
    (folder / "jobs.json").write_text(json.dumps(jobs))
    texts = [one for one in TEXTS if "text" in one]
    (folder / "texts.jsonl").write_text("\n".join(map(json.dumps, texts)) + "\n")
    tokenizer.save(str(folder / "tokenizer.json"))
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    libraries.run({"transformers": ("smaller_experts.py", "make", str(folder))})
    return folder


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


def routed(family: str, tensors: dict[str, np.ndarray], at: str, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the chosen experts and their gates, (n, TOP)."""
    logits = x @ tensors[f"{at}gate.weight"].T
    if family == "deepseek_v3":
        scores = 1 / (1 + np.exp(-logits))
        ranked = scores + tensors[f"{at}gate.e_score_correction_bias"]
        halves = np.sort(ranked.reshape(len(x), 2, -1), axis=2)[:, :, -2:].sum(2)  # of each group, the best two
        ranked = np.where(np.repeat(halves == halves.max(1, keepdims=True), EXPERTS // 2, axis=1), ranked, -np.inf)
    else:
        scores = ranked = softmax(logits)
    chosen = np.argsort(-ranked, axis=1, kind="stable")[:, :TOP]
    gates = np.take_along_axis(scores, chosen, 1)
    if family != "qwen2_moe":
        gates = gates / gates.sum(1, keepdims=True)
    return chosen, gates * (SCALING if family == "deepseek_v3" else 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_statistics_are_those_of_a_forward_pass_in_numpy(made: Path, family: str) -> None:
    found = json.loads((made / family / "stats.json").read_text())
    inputs, tensors = np.load(made / family / "inputs.npz"), read(made / family)
    assert found["layers"].keys() == set(inputs.files)
    block, gate, up, down = WORDS.get(family, ("mlp", "gate_proj", "up_proj", "down_proj"))
    for layer in inputs.files:
        x, at = inputs[layer].astype(np.float64), f"model.layers.{layer}.{block}."
        assert found["tokens"] == len(x)
        chosen, gates = routed(family, tensors, at, x)
        expected = {name: np.zeros(EXPERTS) for name in ("count", "gate", "norm", "gated_norm")}
        for row, place in np.ndindex(*chosen.shape):
            expert, weight = chosen[row, place], gates[row, place]
            inner = tensors[f"{at}experts.{expert}.{gate}.weight"] @ x[row]
            inner = inner / (1 + np.exp(-inner)) * (tensors[f"{at}experts.{expert}.{up}.weight"] @ x[row])
            norm = np.linalg.norm(tensors[f"{at}experts.{expert}.{down}.weight"] @ inner)
            for name, value in (("count", 1), ("gate", weight), ("norm", norm), ("gated_norm", weight * norm)):
                expected[name][expert] += value
        for name, values in expected.items():
            np.testing.assert_allclose(found["layers"][layer][name], values, rtol=1e-4, atol=1e-6, err_msg=f"{layer} {name}")


def test_smaller_models_compute_what_the_whole_ones_do_without_the_other_experts(made: Path) -> None:
    kept = {}
    for family in FAMILIES | STACKED:
        keep = {"count": KEPT, "by": "reap", "statistics": str(made / family / "stats.json")}
        recipe = {"merge_method": "passthrough", "models": [{"model": str(made / family)}], "keep_experts": keep}
        merge(MergeConfig(recipe_yaml=json.dumps(recipe) + "\n", output_path=str(made / f"{family}-small")), progress=False)
        layers = json.loads((made / family / "stats.json").read_text())["layers"]
        kept[family] = {}
        for layer, one in layers.items():
            scores = np.array([total / max(count, 1) for total, count in zip(one["gated_norm"], one["count"], strict=True)])
            parts = np.split(np.arange(EXPERTS), 2 if family == "deepseek_v3" else 1)
            best = [part[np.argsort(-scores[part], kind="stable")][: KEPT // len(parts)] for part in parts]
            kept[family][layer] = sorted(map(int, np.concatenate(best)))
    (made / "kept.json").write_text(json.dumps(kept))
    libraries.run({"transformers": ("smaller_experts.py", "compare", str(made))})
    for family, found in json.loads((made / "compared.json").read_text()).items():
        assert not found["wrong"], family
        assert found["difference"] < 1e-5, family
        assert found["size"] == sum(tensor.size for tensor in read(made / f"{family}-small").values())
