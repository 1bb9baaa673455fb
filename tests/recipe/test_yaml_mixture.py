"""Test the YAML of mixtures of experts: what it means, that a printed recipe is the one that was read, and mistakes."""

from __future__ import annotations

import pytest

from paddle_merge import ConfigError
from paddle_merge.dtypes import BFLOAT16
from paddle_merge.recipe.mixture import Expert
from paddle_merge.recipe.yaml_read import parse
from paddle_merge.recipe.yaml_write import to_yaml

TWO = (
    "base_model: base\nexperts:\n- {source_model: a, positive_prompts: [x, y]}\n- {source_model: b, positive_prompts: [z]}\n"
)
RECIPES = {
    "mergekit's": TWO + "gate_mode: hidden\ndtype: bfloat16\n",
    "cheap": TWO + "gate_mode: cheap_embed\nexperts_per_token: 1\narchitecture: qwen3\nseed: 3\n",
    "random": "base_model: base\ngate_mode: random\nexperts: [{source_model: base}, {source_model: a, noise_scale: 0.1}]\n",
    "shared": TWO + "shared_experts: [{source_model: base, positive_prompts: [q], residual_scale: 0.1}]\n",
    "negative": TWO.replace("[z]", "[z], negative_prompts: ['1', w]"),
    "average": TWO + "non_experts: average\n",
    "upcycle": "base_model: base\nupcycle: {experts: 8, drop_rate: 0.5}\n",
    "upcycle more": "base_model: base\nupcycle: {experts: 4}\nrouter_std: 0.5\nexperts_per_token: 3\n",
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_printed_recipe_is_the_one_that_was_read(name: str) -> None:
    recipe = parse(RECIPES[name], "here").recipe
    assert recipe.mixture is not None
    assert parse(to_yaml(recipe), "there").recipe == recipe


def test_what_mergekits_keys_mean() -> None:
    recipe = parse(RECIPES["mergekit's"], "here").recipe
    mixture = recipe.mixture
    assert mixture is not None
    assert (recipe.models, recipe.base, recipe.out_dtype, recipe.title) == (("a", "b"), "base", BFLOAT16, "moe")
    assert mixture.experts == (Expert(0, ("x", "y")), Expert(1, ("z",)))
    assert (mixture.base, mixture.per_token, mixture.gate_mode, mixture.architecture) == (2, 2, "hidden", None)


def test_upcycling_copies_the_base() -> None:
    recipe = parse(RECIPES["upcycle"], "here").recipe
    mixture = recipe.mixture
    assert mixture is not None
    assert (recipe.models, recipe.base, mixture.experts) == ((), "base", (Expert(0),) * 8)
    assert (mixture.drop_rate, mixture.gate_mode, mixture.router_std) == (0.5, "random", 0.02)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "experts: [{source_model: a}]\ngate_mode: random",
            "base_model, which gives everything but the experts, is missing",
        ),
        (TWO + "upcycle: {experts: 2}", "give one of experts and upcycle, not experts and upcycle"),
        (TWO + "expert_per_token: 2", "unknown key 'expert_per_token'; did you mean 'experts_per_token'?"),
        (TWO + "experts_per_token: 3", "experts_per_token must be from 1 to 2, the number of experts"),
        (TWO + "gate_mode: hiden", "gate_mode 'hiden' must be one of hidden, cheap_embed, random"),
        (
            TWO + "architecture: gpt",
            "architecture 'gpt' must be one of mixtral, deepseek, qwen2_moe, qwen3_moe, ernie4_5_moe",
        ),
        (TWO + "non_experts: mean", "non_experts 'mean' must be one of base, average"),
        (TWO.replace("[z]", "[x, y]"), "all experts have the same prompts, so the router could not tell them apart"),
        (TWO.replace(", positive_prompts: [z]", ""), "which expert 1 (counted from 0) lacks; or say gate_mode: random"),
        (TWO.replace("source_model: b", "model: b"), "source_model, the path of a checkpoint, is missing"),
        (TWO.replace("[z]", "[z], noise_scale: -1"), "noise_scale must not be negative"),
        (TWO.replace("[z]", "[z], residual_scale: x"), "parameter 'residual_scale' must be a number below 1e30, not 'x'"),
        (
            "base_model: b\nupcycle: {drop_rate: 2}",
            "drop_rate must be from 0 (sparse upcycling) to 1; drop-upcycling has 0.5",
        ),
        ("base_model: b\nupcycle: {drop_rate: 0.5}", "upcycle needs experts, the number of copies of the base"),
        ("base_model: b\nexperts: []", "experts is empty"),
        (TWO + "---\n" + TWO, "a mixture of experts is a recipe of its own"),
    ],
)
def test_mistakes(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, "r.yaml")
    assert any(problem.startswith("r.yaml:") and said in problem for problem in caught.value.problems), caught.value.problems


def test_what_has_no_effect_is_noted() -> None:
    notes = parse(TWO + "gate_mode: random\n", "r.yaml").notes
    assert notes == ("r.yaml:1:1: prompts have no effect with gate_mode random",)
    same = parse("base_model: b\ngate_mode: random\nexperts: [{source_model: a}, {source_model: a}]", "r.yaml").notes
    assert same == ("r.yaml:3:10: all experts are the same model, so they compute the same until they are trained",)
