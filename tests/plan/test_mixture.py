"""Test which tensors a mixture of experts has, what config.json says of it, and which models can't be made into one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_merge import CheckpointError, ConfigError, MergeConfig
from paddle_merge.plan.account import account
from paddle_merge.plan.mixture import mixture_config
from paddle_merge.plan.plan import Plan
from paddle_merge.plan.planner import make_plan
from paddle_merge.recipe.request import Request
from tests.support.checkpoints import write
from tests.support.dense import HIDDEN, INTER, LAYERS, config, state, write_dense

EXPERTS = "experts: [{source_model: a}, {source_model: b}]\n"
SHARED = "shared_experts: [{source_model: base, residual_scale: 0.5}]\n"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def models(kind: str, **sizes: Any) -> None:
    for seed, name in enumerate(("base", "a", "b")):
        write_dense(Path(name), kind, seed, **sizes)


def plan(text: str, mode: str = "random", **fields: Any) -> Plan:
    recipe = f"base_model: base\ngate_mode: {mode}\n{text}"
    return make_plan(Request.of(MergeConfig(recipe_yaml=recipe, **fields)).checked_recipe())


def said(made: Plan) -> dict[str, Any]:
    assert made.recipe.mixture is not None
    return mixture_config(made.recipe.mixture, made.config_source.config)


ATTENTION = {f"self_attn.{word}_proj.weight": (HIDDEN // (2 if word in "kv" else 1), HIDDEN) for word in "qkvo"}
NORMS = dict.fromkeys(("input_layernorm.weight", "post_attention_layernorm.weight"), (HIDDEN,))
MLP = {"gate_proj": (INTER, HIDDEN), "up_proj": (INTER, HIDDEN), "down_proj": (HIDDEN, INTER)}
BIASES = {f"self_attn.{word}_proj.bias": (HIDDEN // (2 if word in "kv" else 1),) for word in "qkv"}
# As the libraries' files have them: Mixtral-8x7B, Qwen1.5-MoE-A2.7B, Qwen3-30B-A3B, deepseek-moe-16b, ERNIE-4.5-21B-A3B-PT.
PLAIN = {f"mlp.experts.{number}.{word}.weight": shape for number in (0, 1) for word, shape in MLP.items()}
ROUTER = {"mlp.gate.weight": (2, HIDDEN)}
FAMILIES: dict[str, tuple[str, str, dict[str, tuple[int, ...]]]] = {
    "mixtral": (
        "llama",
        EXPERTS,
        {"block_sparse_moe.gate.weight": (2, HIDDEN)}
        | {
            f"block_sparse_moe.experts.{number}.{word}.weight": MLP[dense]
            for number in (0, 1)
            for word, dense in (("w1", "gate_proj"), ("w3", "up_proj"), ("w2", "down_proj"))
        },
    ),
    "deepseek": (
        "llama",
        f"{EXPERTS}{SHARED}architecture: deepseek\n",
        ROUTER | PLAIN | {f"mlp.shared_experts.{word}.weight": shape for word, shape in MLP.items()},
    ),
    "qwen2_moe": (
        "qwen2",
        EXPERTS + SHARED,
        {**ROUTER, **PLAIN, **BIASES, "mlp.shared_expert_gate.weight": (1, HIDDEN)}
        | {f"mlp.shared_expert.{word}.weight": shape for word, shape in MLP.items()},
    ),
    "qwen3_moe": (
        "qwen3",
        EXPERTS,
        ROUTER | PLAIN | {f"self_attn.{word}_norm.weight": (HIDDEN // 4,) for word in "qk"},
    ),
    "ernie4_5_moe": (
        "ernie4_5",
        EXPERTS + SHARED,
        {**ROUTER, **PLAIN, "mlp.moe_statics.e_score_correction_bias": (1, 2)}
        | {f"mlp.shared_experts.{word}.weight": shape for word, shape in MLP.items()},
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_names_and_shapes_are_those_of_the_family(family: str) -> None:
    kind, text, layer = FAMILIES[family]
    models(kind)
    made = plan(text)
    found = {one.name: one.shape for one in made.tensors}
    expected = {
        f"model.layers.{number}.{name}": shape
        for number in range(LAYERS)
        for name, shape in {**layer, **ATTENTION, **NORMS}.items()
    }
    ends = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    assert {name: shape for name, shape in found.items() if name not in ends} == expected
    assert ends <= found.keys()
    assert said(made)["model_type"] == family
    assert account(made).losses() == []
    whys = {fate.why for one in account(made).inputs for fate in one.left_out}
    assert whys <= {"the mixture takes only its MLPs", "the experts replace it"}


def test_biases_that_a_family_has_and_the_models_lack_are_zeros() -> None:
    models("llama")
    made = plan(f"{EXPERTS}{SHARED}architecture: qwen2_moe")
    bias = next(one for one in made.tensors if one.name == "model.layers.0.self_attn.k_proj.bias")
    assert bias.shape == (HIDDEN // 2,)
    assert "zeros" in str(bias.sources[0])


def test_what_old_files_leave_out_is_said_for_the_new_family() -> None:
    """MixtralConfig would take 1e6 for rope_theta, 1e-5 for rms_norm_eps and 8 for num_key_value_heads."""
    models("llama", rope_theta=None, rms_norm_eps=None, num_key_value_heads=None, tie_word_embeddings=None)
    for name in ("base", "a", "b"):  # whose attention has as many key heads as query heads then
        assert json.loads(Path(name, "config.json").read_text()).get("rope_theta") is None
    its = said(plan(EXPERTS))
    assert (its["rope_theta"], its["rms_norm_eps"], its["num_key_value_heads"]) == (10000.0, 1e-6, 4)
    assert its["tie_word_embeddings"] is False
    assert its["architectures"] == ["MixtralForCausalLM"]
    assert (its["num_local_experts"], its["num_experts_per_tok"], its["sliding_window"]) == (2, 2, None)


def test_windows_are_kept() -> None:
    """mergekit drops them, so experts would see more than they were trained with."""
    models("mistral", sliding_window=8)
    assert said(plan(EXPERTS))["sliding_window"] == 8
    of_qwen = said(plan(f"{EXPERTS}{SHARED}architecture: qwen"))
    assert (of_qwen["use_sliding_window"], of_qwen["sliding_window"], of_qwen["max_window_layers"]) == (True, 8, 0)
    assert of_qwen["layer_types"] == ["sliding_attention"] * LAYERS
    models("qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=1)
    assert said(plan(EXPERTS + SHARED))["layer_types"] == ["full_attention", "sliding_attention"]
    models("qwen2", use_sliding_window=False, sliding_window=8)
    assert "layer_types" not in said(plan(EXPERTS + SHARED))


def problems(text: str, mode: str = "random", **fields: Any) -> list[str]:
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        plan(text, mode, **fields)
    return list(caught.value.problems)


def test_everything_in_which_models_do_not_fit_is_told_together() -> None:
    models("llama")
    write_dense(Path("a"), "llama", 1, inter=20, num_attention_heads=2, num_hidden_layers=3)
    write_dense(Path("b"), "qwen3", 2, hidden_act="gelu")
    assert problems(EXPERTS) == [
        "a: intermediate size 20 (not 24), number of layers 3 (not 2), number of attention heads 2 (not 4): experts must be"
        " models of the same family and size as the base, base",
        "b: model_type qwen3 (not llama), activation function gelu (not silu): experts must be models of the same family and"
        " size as the base, base",
    ]


def test_tensors_that_do_not_fit_are_named() -> None:
    models("llama")
    write(Path("a"), state("llama", 1, inter=20), format="pt", config=config("llama"))
    write(
        Path("b"), {name: one for name, one in state("llama", 2).items() if "1.mlp.up" not in name}, "bfloat16", format="pt"
    )
    assert problems(EXPERTS) == [
        "a: tensors 'model.layers.0.mlp.gate_proj.weight', 'model.layers.0.mlp.up_proj.weight',"
        " 'model.layers.0.mlp.down_proj.weight' and 3 more: another shape than in base, [20, 16] instead of [24, 16]",
        "b: has no tensor 'model.layers.1.mlp.up_proj.weight', which base has",
        "b: tensors 'model.layers.0.mlp.gate_proj.weight', 'model.layers.0.mlp.up_proj.weight',"
        " 'model.layers.0.mlp.down_proj.weight' and 2 more: bfloat16, and float32 in base; give the dtype of the output"
        " (dtype in the recipe, or --out_dtype)",
    ]


def test_the_vocabulary_counts_only_where_it_is_averaged(caplog: pytest.LogCaptureFixture) -> None:
    models("llama")
    write_dense(Path("b"), "llama", 2, vocab=44)
    assert any("b has a vocabulary of 44, not 40" in one for one in plan(EXPERTS).warnings)
    assert "vocabulary of 44 (not 40)" in problems(f"{EXPERTS}non_experts: average")[0]


def test_an_adapter_of_attention_makes_no_expert(here: Path) -> None:
    models("llama")
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    factors = {name.format("A"): np.ones((2, HIDDEN)), name.format("B"): np.ones((HIDDEN, 2))}
    write(here / "lora", factors, prefix="adapter_model", config={})
    (here / "lora" / "config.json").unlink()
    (here / "lora" / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]})
    )
    made = plan("experts: [{source_model: a}, {source_model: base+lora}]")
    assert [one for one in made.warnings if "the very MLPs" in one] == [
        "base+lora has the very MLPs of base, so as an expert it is the same: a mixture has nothing of an adapter that"
        " changes other layers only"
    ]


@pytest.mark.parametrize(
    ("kind", "text", "mode", "sentence"),
    [
        ("qwen2", EXPERTS, "random", "qwen2_moe needs a shared expert, which every token is given to"),
        ("qwen3", EXPERTS + SHARED, "random", "qwen3_moe has no shared experts"),
        ("llama", f"{EXPERTS}architecture: ernie", "random", "ernie4_5_moe is made of models of ernie4_5, not llama"),
        (
            "llama",
            f"{EXPERTS.replace('a}', 'a, positive_prompts: [w3]}').replace('b}', 'b, positive_prompts: [w4]}')}"
            f"{SHARED}architecture: qwen2",
            "cheap_embed",
            "qwen2_moe has a gate for its shared expert, which needs positive_prompts, or gate_mode: random",
        ),
        (
            "llama",
            f"{EXPERTS}{SHARED.replace('0.5', '0.5, positive_prompts: [w3]')}architecture: deepseek",
            "random",
            "deepseek has no gate for its shared expert, so that can't have prompts",
        ),
    ],
)
def test_a_family_that_does_not_fit_says_why(kind: str, text: str, mode: str, sentence: str) -> None:
    models(kind)
    assert sentence in problems(text, mode)[0]


def test_other_models_are_refused_by_their_type() -> None:
    models("llama", model_type="gemma")
    assert problems(EXPERTS) == [
        "base: its config.json says model_type 'gemma'; mixtures are made of models of llama, mistral, qwen2, qwen3,"
        " ernie4_5"
    ]


def test_what_can_not_be_an_expert_is_refused() -> None:
    models("qwen2")
    sentence = "base: mixtral has no biases, and the base has tensors 'model.layers.0.self_attn.q_proj.bias'"
    for name in ("base", "a", "b"):
        Path(name, "config.json").write_text(json.dumps(config("llama")))
    assert sentence in problems(EXPERTS)[0]


def test_biases_that_no_loader_would_read_are_refused() -> None:
    """Llama's attention_bias is of o_proj, too, which Qwen2's mixture lacks; and an expert has no bias at all."""
    models("llama")
    output = {f"model.layers.{layer}.self_attn.o_proj.bias": np.ones(HIDDEN) for layer in range(LAYERS)}
    write(Path("base"), {**state("llama", 0), **output}, format="pt", config=config("llama"))
    write(Path("b"), {**state("llama", 2), "model.layers.0.mlp.up_proj.bias": np.ones(INTER)}, format="pt")
    assert problems(f"{EXPERTS}{SHARED}architecture: qwen2_moe") == [
        "b: its MLPs have tensor 'model.layers.0.mlp.up_proj.bias', and an expert has only gate_proj, up_proj, down_proj",
        "base: qwen2_moe has no biases but of q_proj, k_proj, v_proj, and the base has tensors"
        " 'model.layers.0.self_attn.o_proj.bias' and 'model.layers.1.self_attn.o_proj.bias'",
    ]


def test_layouts_and_formats_that_are_not_made() -> None:
    models("llama")
    for fields, flag in (
        ({"output_layout": "paddleformers"}, "--output_layout paddleformers"),
        ({"save_format": "pdparams"}, "--save_format pdparams"),
    ):
        assert problems(EXPERTS, **fields)[0].startswith(f"{flag}: a mixture of experts is made in Hugging Face's layout")


def test_models_in_paddles_layout_are_read(here: Path) -> None:
    """Names of PaddleNLP, matrices [in, out]: the mixture is the same as of Hugging Face's files."""
    from paddle_merge import merge

    models("llama")
    for name in ("base", "a", "b"):
        recipe = f"models: [{{model: {name}}}]\nmerge_method: passthrough\n"
        merge(MergeConfig(recipe_yaml=recipe, output_path=f"nlp-{name}", output_layout="paddlenlp"), progress=False)
    other = f"base_model: nlp-base\ngate_mode: random\n{EXPERTS.replace('model: ', 'model: nlp-')}"
    found = make_plan(Request.of(MergeConfig(recipe_yaml=other)).checked_recipe())
    assert [(one.name, one.shape) for one in found.tensors] == [(one.name, one.shape) for one in plan(EXPERTS).tensors]
