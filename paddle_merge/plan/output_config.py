"""Make the output's config.json, as far as experts and layers go; sidecars.py does the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..checkpoints.names import layer_of
from ..checkpoints.tensors import Checkpoint
from ..conversion.moe.layers import expert_counts
from ..recipe.recipe import Recipe
from .expert_config import misplaced, with_experts
from .layer_config import restacked
from .tensor_plan import TensorPlan


def changes_config(recipe: Recipe) -> bool:
    """Return whether the output has other layers, or fewer experts, than its inputs."""
    slices = [*recipe.slices, *(part for stage in recipe.stages for part in stage.slices)]
    sliced = any(part.layers is not None for part in slices)
    return sliced or bool(recipe.drop_layers) or recipe.keep_experts is not None


def output_config(
    config: Mapping[str, Any], recipe: Recipe, tensors: Sequence[TensorPlan], inputs: Sequence[Checkpoint]
) -> tuple[dict[str, Any], list[str]]:
    """Return config.json for the layers and experts of the output; and sentences on what it can't say of them."""
    if not changes_config(recipe):
        return dict(config), []
    found, worries = restacked(config, recipe, tensors, inputs)
    if recipe.keep_experts is not None:
        like = inputs[recipe.slices[0].inputs[0].number]
        before = set(expert_counts({name: entry.shape for name, entry in like.tensors.items()}).values())
        after = set(expert_counts({one.name: one.shape for one in tensors}).values())
        if len(before) == len(after) == 1:
            found = with_experts(found, before.pop(), after.pop())
    return found, worries


def wrong_kinds(
    config: Mapping[str, Any],
    new: Mapping[str, Any],
    recipe: Recipe,
    tensors: Sequence[TensorPlan],
    inputs: Sequence[Checkpoint],
) -> str:
    """Return why loaders would take layers that drop_layers moves for others than they are; "" if they won't.

    config: of the inputs. new: of the output, as output_config returns it.
    """
    like = inputs[recipe.slices[0].inputs[0].number]
    before = _with_experts({name: entry.shape for name, entry in like.tensors.items()})
    after = _with_experts({tensor.name: tensor.shape for tensor in tensors})
    if not before or len({stack for stack, _ in before}) > 1:
        return ""
    (stack,) = {stack for stack, _ in before}
    return misplaced(_flat(config), {n for _, n in before}, _flat(new), {n for its, n in after if its == stack})


def _with_experts(shapes: Mapping[str, tuple[int, ...]]) -> set[tuple[str, int]]:
    """Return the layers that have experts, each as layer_of returns it."""
    found = {layer_of(f"{prefix}.") for prefix in expert_counts(shapes)}
    return {layer for layer in found if layer is not None}


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    text = config.get("text_config")
    return {**config, **(text if isinstance(text, dict) else {})}
