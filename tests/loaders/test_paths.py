"""Test that scales of layer paths, folded into weights, give the logits of an explicit forward pass that scales the residual
stream: for every family that residual.FAMILIES lists, computed by transformers; PaddleNLP and PaddleFormers load the result.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_merge import MergeConfig, merge
from paddle_merge.recipe.yaml_write import to_yaml
from paddle_merge.search.candidates import alone
from paddle_merge.search.merger import Merger
from paddle_merge.search.paths import PathSpace
from paddle_merge.search.residual import FAMILIES, REASONS
from paddle_merge.search.spaces import space_of
from tests.loaders.test_loaders import work
from tests.support.libraries import ABSENT

pytestmark = [
    pytest.mark.loaders,
    pytest.mark.skipif(bool(ABSENT), reason=f"no interpreter is named by {', '.join(ABSENT)}"),
]

COMMON = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "head_dim": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12, "norm_topk_prob": True}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
GROUPED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "moe_intermediate_size": 12, "n_group": 1}
GROUPED |= {"topk_group": 1, "first_k_dense_replace": 0, "num_key_value_heads": 4, "norm_topk_prob": True}
LATENT = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 4}
ERNIE = {"moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1, "moe_intermediate_size": 12}
OWN: dict[str, dict[str, Any]] = {
    "deepseek_v2": {**GROUPED, **LATENT, "topk_method": "greedy"},
    "deepseek_v3": {**GROUPED, **LATENT},
    "dots1": GROUPED,
    "glm4_moe": GROUPED,
    "ernie4_5_moe": {**ERNIE, "moe_layer_start_index": 0, "moe_layer_end_index": 1, "moe_layer_interval": 1},
    "granitemoeshared": {**LOCAL, "shared_intermediate_size": 12},
    "granite": {"residual_multiplier": 0.5, "embedding_multiplier": 3.0, "logits_scaling": 2.0},
    "granitemoe": {**LOCAL, "residual_multiplier": 0.5},
    "mixtral": LOCAL,
    "phimoe": LOCAL,
    "gpt_oss": {**LOCAL, "layer_types": ["full_attention"] * 2},
    "qwen2_moe": {**MIXTURE, "shared_expert_intermediate_size": 12, "decoder_sparse_step": 1},
    "qwen3_moe": {**MIXTURE, "decoder_sparse_step": 1},
    "olmoe": MIXTURE,
    "cohere2": {"layer_types": ["full_attention"] * 2},
    "opt": {"ffn_dim": 24, "word_embed_proj_dim": 16},
    "stablelm": {"use_parallel_residual": False},
    "gpt_neox": {"use_parallel_residual": True},
    "smollm3": {"no_rope_layers": [1, 1]},
}
HEADS = ("head_dim", "num_key_value_heads")
DROPPED = {"bloom": HEADS, "falcon": HEADS, "gpt_bigcode": HEADS, "gpt_neox": HEADS[:1]}
# (model, layer, factor on the stream that enters it): layers of both, repeated, and out of order; no factor is 1.
PATH = [(0, 1, 0.8), (1, 0, 1.5), (1, 1, 0.6), (0, 0, 1.3), (1, 1, 1.9)]
TURNS = (0, 0, 0, 1, 1)


def config(family: str) -> dict[str, Any]:
    if family == "gpt2":
        return {"model_type": "gpt2", "vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64}
    kept = {name: value for name, value in COMMON.items() if name not in DROPPED.get(family, ())}
    return {"model_type": family, **kept, **OWN.get(family, {})}


@dataclass
class Shown:
    """references, loaded: logits by family, of transformers. paddle: library -> what loading says, and logits. plain: logits
    of the same paths without factors."""

    references: dict[str, np.ndarray]
    plain: dict[str, np.ndarray]
    loaded: dict[str, np.ndarray]
    said: dict[str, str]
    paddle: dict[str, tuple[dict[str, str], dict[str, np.ndarray]]]


def text(folder: Path, family: str) -> str:
    return f"paths: {{models: [{folder}/{family}-a, {folder}/{family}-b], repeats: 2, scales: [0.5, 2]}}\n"


def values(space: PathSpace) -> tuple[bool | float, ...]:
    """PATH as values of genes: of two models with two layers each, repeated twice."""
    places = {4 * turn + 2 * model + layer: scale for (model, layer, scale), turn in zip(PATH, TURNS, strict=True)}
    assert len(space.genes) == 16
    return (*(place in places for place in range(8)), *(places.get(place, 1.0) for place in range(8)))


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    folder = tmp_path_factory.mktemp("paths")
    jobs: dict[str, list[Any]] = {"save": [], "reference": []}
    for family in FAMILIES:
        both = [str(folder / f"{family}-{letter}") for letter in "ab"]
        jobs["save"] += [{"folder": one, "config": config(family), "seed": seed} for seed, one in enumerate(both)]
        jobs["reference"] += [{"name": family, "folders": both, "path": PATH}]
        plain = [(model, layer, 1.0) for model, layer, _ in PATH]
        jobs["reference"] += [{"name": f"{family} without factors", "folders": both, "path": plain}]
    _, references = work(folder / "saving", {"transformers": jobs}, "paths")["transformers"]
    loads: dict[str, dict[str, list[Any]]] = {
        "transformers": {"load": []},
        "paddlenlp": {"load": []},
        "paddleformers": {"load": []},
    }
    options = {"transformers": {}, "paddlenlp": {"convert_from_torch": True}, "paddleformers": {}}
    for family in FAMILIES:
        space = space_of(text(folder, family), "search.yaml", Merger())
        assert isinstance(space, PathSpace)
        recipe = to_yaml(space.recipe(values(space)))
        merge(MergeConfig(recipe_yaml=recipe, output_path=str(folder / family)), progress=False)
        for library, its in options.items():
            if library == "transformers" or family == "llama" or (family, library) == ("qwen2", "paddlenlp"):
                entry = {"name": family, "folder": str(folder / family), "model_type": family, "options": its}
                loads[library]["load"].append(entry)
    for letter in "ab":  # PaddleNLP's layout: other names, and matrices [in, out]
        recipe, own = alone(str(folder / f"llama-{letter}")), str(folder / f"paddle-{letter}")
        merge(MergeConfig(recipe_yaml=recipe, output_path=own, output_layout="paddlenlp"), progress=False)
    space = space_of(text(folder, "paddle"), "search.yaml", Merger())
    assert isinstance(space, PathSpace)
    recipe = to_yaml(space.recipe(values(space)))
    merge(MergeConfig(recipe_yaml=recipe, output_path=str(folder / "paddle")), progress=False)
    entry = {"name": "paddle", "folder": str(folder / "paddle"), "model_type": "llama", "options": {}}
    loads["paddlenlp"]["load"].append(entry)
    done = work(folder / "loading", {"transformers": loads.pop("transformers")}, "paths")
    said, loaded = done["transformers"]
    return Shown(
        references={family: references[family] for family in FAMILIES},
        plain={family: references[f"{family} without factors"] for family in FAMILIES},
        loaded=loaded,
        said=said,
        paddle=work(folder / "paddle", loads),
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_folded_factors_give_the_logits_of_a_scaled_stream(shown: Shown, family: str) -> None:
    assert family in shown.loaded, shown.said[family]
    expected = shown.references[family]
    size = np.abs(expected).max()
    np.testing.assert_allclose(shown.loaded[family], expected, rtol=0, atol=2e-4 * size)
    assert np.abs(shown.plain[family] - expected).max() > 0.02 * size  # what the factors change


def test_paddlenlp_and_paddleformers_load_it(shown: Shown) -> None:
    """paddle: models in PaddleNLP's layout, made of Llama's."""
    for library, names in {"paddlenlp": ("llama", "qwen2", "paddle"), "paddleformers": ("llama",)}.items():
        said, logits = shown.paddle[library]
        for name in names:
            assert name in logits, said[name]
            expected = shown.references["llama" if name == "paddle" else name]
            np.testing.assert_allclose(logits[name], expected, rtol=0, atol=2e-4 * np.abs(expected).max())


def test_no_family_is_both_exact_and_not() -> None:
    assert not FAMILIES.keys() & REASONS.keys()
