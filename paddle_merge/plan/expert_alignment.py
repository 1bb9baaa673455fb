"""Decide how the experts of mixtures of experts correspond, and where the output's routers come from.

Experts of one base correspond by their index. Experts of models that were trained apart don't: `expert_alignment: match`
puts them, and the neurons of each, in the order in which they resemble those of the base, or of the first model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import field
from hashlib import blake2b
from typing import Any

import numpy as np

from ..checkpoints.adapters import absolute_spec
from ..checkpoints.tensors import Checkpoint, Origin, origins
from ..conversion.moe.layers import MoeLayer, has_experts
from ..conversion.moe.order import Orders, comparable, layers_of, measured, read_orders
from ..conversion.moe.reorder import reordered
from ..errors import CheckpointError
from ..parsing import tensors_named
from ..recipe.recipe import Recipe
from ..records import record

INDEX, MATCH = "index", "match"  # values of expert_alignment; any other is the file of an earlier merge
ALIKE = 0.1  # the cosine between experts, after they are matched, below which they have hardly anything in common


@record(frozen=True)
class Experts:
    """Hold inputs whose experts correspond by their index.

    inputs: as they are merged. notes: sentences for the plan. warnings: on experts that hardly resemble one another.
    routers: the number of the base, by the names of the tensors that are its; why: the reason for the others' that are not
    read, by their origins. orders: None if no experts were matched.
    """

    inputs: tuple[Checkpoint, ...]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    routers: Mapping[str, int] = field(default_factory=dict)
    why: Mapping[Origin, str] = field(default_factory=dict)
    orders: Orders | None = None

    @property
    def digest(self) -> str:
        """What is equal for the same orders; "" if no experts were matched."""
        found = blake2b(digest_size=16)
        for number, layers in self.orders.by_input.items() if self.orders is not None else ():
            for prefix, one in layers.items():
                found.update(f"{number} {prefix}".encode() + one.experts.tobytes() + one.neurons.tobytes())
        return found.hexdigest() if self.orders is not None else ""

    @property
    def nbytes(self) -> int:
        """The bytes of all orders."""
        held = self.orders.by_input.values() if self.orders is not None else ()
        return sum(one.neurons.nbytes for layers in held for one in layers.values())


def experts_of(
    recipe: Recipe, inputs: tuple[Checkpoint, ...], config: Mapping[str, Any], layout: str | None, measure: bool
) -> Experts:
    """Return the inputs of a recipe with experts that correspond, as the recipe asks for.

    config: the output's config.json. layout: of the tensors. measure: whether to read weights and match experts, where that
    is asked for; else only whether it can be done is checked. Raises CheckpointError listing what can't; WorkError.
    """
    matching, of_layers = recipe.expert_alignment != INDEX, takes_layers(recipe)
    if not matching and recipe.router == "merge":
        return Experts(inputs, () if of_layers else _by_index(inputs, config, layout))
    first = len(recipe.models) if recipe.base is not None else 0
    if recipe.router == "base" and recipe.base is None:
        raise CheckpointError(
            "router: base keeps the routers of the base model, and there is none: give it (--base_model_path, or base_model"
            " in a recipe), or leave router out"
        )
    if of_layers:
        asked = f"expert_alignment: {recipe.expert_alignment}" if matching else "router: base"
        raise CheckpointError(f"{asked} is for whole models, layer by layer; with slices, leave it out")
    if matching and len(inputs) < 2:
        raise CheckpointError("expert_alignment: there is one model, so its experts have none to match; leave it out")
    layers = [layers_of(one, config, layout) for one in (inputs if matching else inputs[first : first + 1])]
    routers = dict[str, int]()
    why, notes = dict[Origin, str](), list[str]()
    if recipe.router == "base":
        its = layers[first if matching else 0].values()
        routers = {name: first for layer in its for name, _ in layer.router}
        if not routers:
            raise CheckpointError(f"router: {inputs[first].path} has no mixture of experts, so no router; leave it out")
        others = [one for number, one in enumerate(inputs) if number != first]
        held = [one.tensors[name] for one in others for name in routers if name in one.tensors]
        why = {origin: "the base's router is taken" for entry in held for origin in origins(entry)}
        notes.append(f"{tensors_named(sorted(routers))}: the routers of {inputs[first].path}")
    if not matching:
        return Experts(inputs, (*_by_index(inputs, config, layout), *notes), routers=routers, why=why)
    comparable(inputs, layers, first)
    size = _count(layers[first])
    if recipe.expert_alignment != MATCH:
        titles = [absolute_spec(path) for path in recipe.sources]
        orders = read_orders(recipe.expert_alignment, titles, layers, first)
    elif not measure:
        said = f"{size}; before the merge, their weights are read twice, to match them to those of {inputs[first].path}"
        return Experts(inputs, (said, *notes), routers=routers, why=why)
    else:
        orders = measured(inputs, layers, first)
    ordered = [
        reordered(one, layers[number], orders.by_input[number]) if number in orders.by_input else one
        for number, one in enumerate(inputs)
    ]
    told, warnings = _told(inputs, orders, size)
    return Experts(tuple(ordered), (*told, *notes), warnings, routers, why, orders)


def takes_layers(recipe: Recipe) -> bool:
    """Return whether slices say which layers are taken, so that layers of different numbers may be merged, or none."""
    parts = [*recipe.slices, *(part for stage in recipe.stages for part in stage.slices)]
    return any(part.layers is not None for part in parts)


def _by_index(inputs: Sequence[Checkpoint], config: Mapping[str, Any], layout: str | None) -> tuple[str, ...]:
    """Return a sentence on experts that correspond by their index; none if there are none, or one model."""
    if len(inputs) < 2 or not any(has_experts(one.tensors) for one in inputs):
        return ()
    try:
        size = next(_count(found) for one in inputs if (found := layers_of(one, config, layout)))
    except (CheckpointError, StopIteration):
        size = "a mixture of experts"
    return (
        f"{size}; expert k is merged with expert k, as for models of one base (--expert_alignment match finds which experts"
        " correspond, for models that were trained apart)",
    )


def _count(layers: Mapping[str, MoeLayer]) -> str:
    """Return how many layers of how many experts there are."""
    counts = sorted({layer.count for layer in layers.values()})
    of = " or ".join(map(str, counts))
    return f"{len(layers)} layer{'s' if len(layers) > 1 else ''} of {of} experts"


def _told(inputs: Sequence[Checkpoint], orders: Orders, size: str) -> tuple[list[str], tuple[str, ...]]:
    """Return sentences on what was matched, for the plan; and on models whose experts hardly resemble the reference's."""
    like = inputs[orders.reference].path
    notes, warnings = [f"{size}, in the order of {like}"], list[str]()
    for number, layers in orders.by_input.items():
        moved = sum(int((one.experts != np.arange(len(one.experts))).sum()) for one in layers.values())
        inside = sum(int((one.neurons != np.arange(one.neurons.shape[1])).any(axis=1).sum()) for one in layers.values())
        total = sum(len(one.experts) for one in layers.values())
        cosines = [one.cosine for one in layers.values() if not math.isnan(one.cosine)]
        alike = f", cosine {sum(cosines) / len(cosines):.3f}" if cosines else ""
        notes.append(
            f"{inputs[number].path}: {moved} of {total} experts in another place, neurons in another order in"
            f" {inside}{alike}"
        )
        if cosines and sum(cosines) / len(cosines) < ALIKE:
            warnings.append(
                f"the experts of {inputs[number].path} hardly resemble those of {like}, even matched (cosine"
                f" {sum(cosines) / len(cosines):.3f}): their average will likely be worse than either"
            )
    return notes, tuple(warnings)
