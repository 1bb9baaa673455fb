"""Say what is likely not meant in a merge by a method whose models have roles, such as the aligned and the unaligned one."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ..parsing import tensors_named
from ..recipe.recipe import Recipe
from .tensor_plan import TensorPlan


def doubts(recipe: Recipe, tensors: Sequence[TensorPlan]) -> list[str]:
    """Return a sentence on each model that has two roles, and on tensors that the method leaves as one model has them."""
    return [*_twice(recipe), *_unmixed(recipe, tensors)]


def _twice(recipe: Recipe) -> list[str]:
    """Return a sentence on each path that stands in two roles of a slice."""
    method, paths, found = recipe.method, [os.path.realpath(path) for path in recipe.sources], list[str]()
    for part in recipe.slices if method.roles else ():
        held: dict[str, str] = {}
        roles = [*method.roles, method.base_role] if part.base is not None else method.roles
        for one, role in zip(part.everything, roles, strict=True):
            if one.number < len(paths):  # else it is made by an earlier merge
                other = held.setdefault(paths[one.number], role)
                if other != role:
                    found.append(f"{recipe.titles[one.number]} is given as {other} and as {role}; is that meant?")
    return list(dict.fromkeys(found))


def _unmixed(recipe: Recipe, tensors: Sequence[TensorPlan]) -> list[str]:
    """Return a sentence on tensors of more than two axes, such as stacks of experts, which safe_merge doesn't compare."""
    names = [one.name for one in tensors if one.merged and len(one.shape) > 2 and one.dtype.is_float]
    if recipe.title != "safe_merge" or not names:
        return []
    return [
        f"{tensors_named(names)}: of more than two axes, so safe_merge leaves them as they are in {recipe.method.roles[0]}"
    ]
