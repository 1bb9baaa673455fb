"""Test adapters of experts, single tokens, more tokens and convolutions: PEFT, or PaddleFormers' layers, fold them too.

test_loaders.py says what this needs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.loaders.test_adapters import assert_close, fold
from tests.loaders.test_loaders import VOCAB, config, work
from tests.support.checkpoints import read
from tests.support.libraries import ABSENT

pytestmark = [
    pytest.mark.loaders,
    pytest.mark.skipif(bool(ABSENT), reason=f"no interpreter is named by {', '.join(ABSENT)}"),
]

BASE = config("llama", "untied")
LORA: dict[str, Any] = {"r": 4, "lora_alpha": 8}
EXPERTS = {
    **{"moe_intermediate_size": 12, "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2},
    **{"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
}
BOTH: dict[str, Any] = {"target_modules": [], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"], **LORA}
DOWN: dict[str, Any] = {"target_modules": ["q_proj"], "target_parameters": ["experts.down_proj"], "use_rslora": True, **LORA}
PATTERNS = {"rank_pattern": {"gate_up_proj": 2}, "alpha_pattern": {"layers.1.mlp.experts.down_proj": 5}}
ROUTER = {**BOTH, "target_parameters": [*BOTH["target_parameters"], "gate.weight"], **PATTERNS}
OLD = {"target_modules": ["q_proj", "gate_proj", "up_proj", "down_proj"], **LORA}  # as of transformers 4
TOKENS = {"target_modules": ["q_proj"], "trainable_token_indices": [3, 7], **LORA}
PAIR = {"embed_tokens": [9, 2], "lm_head": [1, 2]}
MORE = {"target_modules": ["q_proj"], "rows": VOCAB + 2, **LORA}
# Model type -> its further settings, and its adapters.
MODELS: dict[str, tuple[dict[str, Any], dict[str, dict[str, Any]]]] = {
    "qwen3_moe": (EXPERTS, {"both": BOTH, "down": DOWN, "router": ROUTER, "old": OLD}),
    "mixtral": (EXPERTS, {"both": BOTH, "all": {"target_modules": "all-linear", **LORA}}),
    "gpt_oss": ({**EXPERTS, "intermediate_size": 16}, {"both": BOTH, "down": DOWN}),  # down_proj is square
    "granitemoe": (EXPERTS, {"both": BOTH}),
    "llama4_text": ({**EXPERTS, "intermediate_size_mlp": 20, "interleave_moe_layer_step": 1}, {"both": BOTH}),
    "glm4_moe": (EXPERTS, {"both": BOTH, "router": ROUTER}),
    "llama": (
        {},
        {
            "tokens": TOKENS,
            "tokens of both": {**TOKENS, "trainable_token_indices": PAIR},
            "tokens alone": {"peft_type": "TRAINABLE_TOKENS", "token_indices": [4, 5]},
            "beside a head": {**TOKENS, "target_modules": ["q_proj", "lm_head"]},
            "more": MORE,
            "more saved": {**MORE, "modules_to_save": ["embed_tokens", "lm_head"]},
            "more adapted": {**MORE, "target_modules": ["q_proj", "embed_tokens", "lm_head"]},
            "more trained": {**MORE, "trainable_token_indices": [VOCAB, VOCAB + 1]},
        },
    ),
    "qwen2": (
        {"tie_word_embeddings": True},
        {
            "tokens": TOKENS,
            "tokens alone": {"peft_type": "TRAINABLE_TOKENS", "token_indices": [4, 5]},
            "more": MORE,
            "more trained": {**MORE, "trainable_token_indices": [VOCAB, VOCAB + 1]},
        },
    ),
}
CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": ["one", "two", "three", "narrow", "pointwise"], **LORA},
    "dora": {"target_modules": ["one", "two", "three"], "use_dora": True, **LORA},
    "bias": {"target_modules": ["two", "narrow"], "lora_bias": True, "bias": "all", **LORA},
}
LAYERS: dict[str, dict[str, Any]] = {"layers": LORA, "layers of rslora": {**LORA, "rslora": True}}  # PaddleFormers'


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each model, in which transformers wrote it, and PEFT its adapters and what they make of it."""
    folder = tmp_path_factory.mktemp("peft")
    jobs: list[dict[str, Any]] = [
        {"folder": str(folder / family), "config": BASE | {"model_type": family} | more, "adapters": adapters}
        for family, (more, adapters) in MODELS.items()
    ]
    convolutions = [{"folder": str(folder / "convolutions"), "adapters": CONVOLUTIONS}]
    layers = [{"folder": str(folder / name), "lora": lora} for name, lora in LAYERS.items()]
    both = {"transformers": {"adapt": jobs, "convolve": convolutions}, "paddleformers": {"adapt_layers": layers}}
    work(folder / "work", both, "lora")
    return folder


CASES = [(family, adapter) for family, (_, adapters) in MODELS.items() for adapter in adapters]


@pytest.mark.parametrize(("family", "adapter"), [*CASES, *(("convolutions", adapter) for adapter in CONVOLUTIONS)])
def test_adapters_fold_as_peft_folds_them(made: Path, tmp_path: Path, family: str, adapter: str) -> None:
    folder = made / family
    expected = read(folder / f"{adapter}-folded")
    assert_close(fold(folder / "base", folder / adapter, tmp_path / "out"), expected)
    if family != "convolutions":
        says, theirs = (
            json.loads((one / "config.json").read_text()) for one in (tmp_path / "out", folder / f"{adapter}-folded")
        )
        assert (says["vocab_size"], says["tie_word_embeddings"]) == (theirs["vocab_size"], theirs["tie_word_embeddings"])


@pytest.mark.parametrize("name", LAYERS)
def test_adapters_fold_as_paddleformers_folds_them(made: Path, tmp_path: Path, name: str) -> None:
    folder = made / name
    assert_close(fold(folder / "base", folder / "lora", tmp_path / "out"), read(folder / "lora-folded"))
