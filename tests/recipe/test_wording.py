"""How problems with parameters are worded."""

from __future__ import annotations

import pytest

from paddle_merge.methods.paddlenlp import method
from paddle_merge.methods.registry import NAMED
from paddle_merge.methods.shared.problems import Problem
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
