"""Test the wording of problems with parameters."""

from __future__ import annotations

from typing import Any

import pytest

from paddle_merge import MergeConfig
from paddle_merge.methods.paddlenlp import method
from paddle_merge.methods.registry import NAMED
from paddle_merge.methods.shared.problems import Problem
from paddle_merge.recipe.request import Request
from paddle_merge.recipe.wording import as_flags, in_recipes


@pytest.mark.parametrize(
    ("problem", "flags", "recipe"),
    [
        (Problem("reserve_p", "2 is too much"), "--reserve_p 2 is too much", "parameter 'reserve_p' 2 is too much"),
        (Problem("weight", "0 0 is none"), "--weight_list 0 0 is none", "parameter 'weight' 0 0 is none"),
        (
            Problem("epsilon", "3 with {reserve_p} 1"),
            "--epsilon 3 with --reserve_p 1",
            "parameter 'epsilon' 3 with 'reserve_p' 1",
        ),
        (
            Problem("weight", "-1; {normalize:false} to keep it"),
            "--weight_list -1; pass --no_normalize to keep it",
            "parameter 'weight' -1; set normalize: false to keep it",
        ),
        (Problem(None, "one model is needed"), "one model is needed", "one model is needed"),
    ],
)  # fmt: skip
def test_words(problem: Problem, flags: str, recipe: str) -> None:
    assert (as_flags(problem), in_recipes(problem)) == (flags, recipe)


def test_methods_name_no_flags() -> None:
    """Only this package knows whether a parameter is a flag or a recipe's word."""
    found = [
        *method("magprune", "ties", "della").problems(
            reserve_p=0.7, rescale=True, epsilon=3.0, weight=(1.0, -1.0), normalize=True,
            ties_elect_type="most", ties_zero_sign="positive",
        ),
        *method("trim", "slerp", "x").problems(
            reserve_p=0.0, rescale=True, slerp_alpha=2.0, slerp_normalize_eps=-1.0, slerp_dot_threshold=3.0
        ),
        *NAMED["multislerp"].problems(weight=(1.0, -1.0), normalize_weights=True, eps=1e-8),
        *NAMED["breadcrumbs"].problems(weight=(1.0,), density=(0.5,), gamma=(2.0,), normalize=True, rescale=True),
    ]  # fmt: skip
    assert [one.parameter for one in found] == [
        *("ties_elect_type", "epsilon", "weight", "reserve_p", "slerp_alpha", "slerp_dot_threshold", "slerp_normalize_eps"),
        *("weight", "gamma"),
    ]
    assert not any("--" in one.sentence or "parameter '" in one.sentence for one in found)
    assert all("{" not in worded(one) for one in found for worded in (as_flags, in_recipes))


@pytest.mark.parametrize(
    ("problem", "named", "flags"),
    [
        (Problem("density", "2 is too much"), (), "--reserve_p 2 is too much"),
        (Problem("density", "2 is too much"), ("density",), "--method_parameters density 2 is too much"),
        (Problem("gamma", "2 with {density} 1"), ("gamma",), "--method_parameters gamma 2 with --reserve_p 1"),
        (Problem(None, "{x:true} to merge"), ("x",), "pass --method_parameters x=true to merge"),
    ],
)
def test_parameters_without_a_flag(problem: Problem, named: tuple[str, ...], flags: str) -> None:
    assert as_flags(problem, named) == flags


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"merge_method": "breadcrumbs", "method_parameters": ["gamma=2"]}, "--method_parameters gamma 2 2 is the share"),
        ({"merge_method": "ties", "reserve_p": 2.0}, "--reserve_p 2 is"),
        ({"merge_method": "multislerp", "weight_list": [1.0, -1.0]}, "--weight_list 1 -1 sums to zero"),
    ],
)
def test_flags_are_named_as_they_were_typed(fields: dict[str, Any], words: str) -> None:
    (problem,) = Request.of(MergeConfig(model_path_list=["a", "b"], base_model_path="base", **fields)).problems
    assert problem.startswith(words)
