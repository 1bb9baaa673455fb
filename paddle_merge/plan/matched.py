"""Open the inputs of a merge and make their tensors match: names, layout, lm_head, adapters, buffers and heads.

Each step is a module of conversion/, or heads.py. What remains different is told by planner.py, for all inputs together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ..checkpoints.adapters import Adapter
from ..checkpoints.config_json import read_config
from ..checkpoints.tensors import Checkpoint, Origin
from ..conversion.copies import with_copies
from ..conversion.inputs import open_inputs
from ..conversion.layout import METADATA, normalise
from ..conversion.lora.adapt import adapt
from ..conversion.lora.tied import trains_apart
from ..conversion.moe.layers import has_experts
from ..conversion.moe.stacks import problems_of_adapters, split, stacked
from ..conversion.naming import in_one_naming
from ..conversion.optional import WithoutOptional, without_optional
from ..conversion.paddle_names import in_standard_names
from ..errors import CheckpointError
from ..recipe.recipe import Recipe
from ..records import record
from .config_source import ConfigSource, find_config_source
from .expert_alignment import Experts, experts_of
from .heads import Heads, heads_of
from .partial import check, kept, other_depths


@record(frozen=True)
class Matched:
    """Hold the inputs of a merge as they are merged, and what was done to them.

    inputs: as Recipe.sources. experts: how mixtures of experts correspond in them. opened: the same as they are stored,
    with the adapters of each. layout: of all inputs; None if it is unknown. tied: as layout.Normalised.tied. averaged:
    names of tensors that the base lacks (heads.py). left_out: why stored tensors are not read, by their origins. notes:
    sentences on what was matched; folded: on each adapter; warnings: on changes of adapters that are lost, and the like.
    """

    inputs: tuple[Checkpoint, ...]
    experts: Experts
    opened: tuple[tuple[Checkpoint, Sequence[Adapter]], ...]
    layout: str | None
    tied: bool | None
    averaged: frozenset[str]
    left_out: Mapping[Origin, str]
    config_source: ConfigSource
    notes: tuple[str, ...]
    folded: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def family(self) -> Any:
        """Return config.json's model_type."""
        return self.config_source.config.get("model_type")


def matched(recipe: Recipe, measure: bool = True) -> Matched:
    """Return the inputs of a recipe with matching tensors.

    Only headers are read, the values of tensors that may be tied, and, if the recipe asks to match experts and `measure` is
    set, the weights of experts. Raises CheckpointError listing everything that can't be opened, converted or folded;
    ConfigError.
    """
    check(recipe)
    opened, adapters, numbers = zip(*open_inputs(recipe.sources, recipe.prefix), strict=True)
    read, quantised = [one.checkpoint for one in numbers], list(dict.fromkeys(one.note for one in numbers if one.note))
    unread = {origin: why for one in numbers for origin, why in one.left_out.items()}
    config_source = find_config_source(opened, recipe.base is not None, recipe.config_from)
    named, renamed = in_one_naming(in_standard_names(read, recipe.output_layout))
    if (asked := recipe.expert_layout == "split") or recipe.output_layout not in (None, "hf"):  # Paddle's files are split
        named, more = zip(*(split(one, config_source.config, asked) for one in named), strict=True)
        renamed += filter(None, more)
    apart = any(
        trains_apart(adapter, checkpoint, read_config(checkpoint.folder) or config_source.config)
        for checkpoint, its in zip(opened, adapters, strict=True)
        for adapter in its
    )
    normalised = normalise(
        inputs=named,
        given=recipe.layouts,
        target=recipe.output_layout,
        strict=recipe.strict_layout,
        prefix=recipe.prefix,
        fallback=config_source.config,
        tie="untie" if apart and recipe.tie == "auto" else recipe.tie,
    )
    layout, tied = normalised.layout, normalised.tied
    inputs = normalised.inputs
    if recipe.expert_layout == "stacked":
        if problems := problems_of_adapters(adapter for its in adapters for adapter in its):
            raise CheckpointError(problems)
        inputs, more = zip(*(stacked(one, config_source.config, layout) for one in inputs), strict=True)
        renamed += filter(None, more)
    adapted = adapt(
        inputs,
        adapters,
        recipe.sources,
        layout,
        config_source.config,
        tied,
        allow_untrained=recipe.allow_untrained,
        requantise=recipe.requantise,
    )
    inputs = adapted.checkpoints
    whole = all(part.layers is None and part.module is None for part in recipe.slices)
    inputs, copied = with_copies(inputs) if whole else (inputs, [])
    everything = recipe.missing_tensors in ("union", "fill")
    needed = without_optional(inputs) if whole and not everything else WithoutOptional(inputs)
    heads = heads_of(recipe, needed.inputs)
    if heads.names and recipe.missing_tensors not in ("fill", "intersection"):  # the models' classes have them
        config_source = find_config_source(opened[: len(recipe.models)], False, recipe.config_from)
    if recipe.missing_tensors != "error":
        heads = Heads(needed.inputs)
    apart_from = kept(recipe, heads.inputs)
    inputs = apart_from.inputs
    idle = other_depths(heads.inputs, inputs, config_source) if recipe.missing_tensors != "error" else list[str]()
    if recipe.expert_layout is not None and not any(has_experts(one.tensors) for one in inputs):
        idle += [f"--expert_layout {recipe.expert_layout} has no effect: the models have no mixture of experts"]
    experts = experts_of(recipe, tuple(inputs), config_source.config, layout, measure)
    inputs = experts.inputs
    if layout is not None:
        inputs = tuple(dataclasses.replace(checkpoint, format=METADATA[layout]) for checkpoint in inputs)
    return Matched(
        inputs=inputs,
        experts=experts,
        opened=tuple(zip(opened, adapters, strict=True)),
        layout=layout,
        tied=tied,
        averaged=heads.names,
        left_out={**unread, **adapted.left_out, **needed.why, **heads.why, **apart_from.why, **experts.why},
        config_source=config_source,
        notes=(*quantised, *renamed, *normalised.notes, *copied, *needed.notes, *heads.notes, *apart_from.notes),
        folded=tuple(adapted.notes),
        warnings=(*adapted.warnings, *experts.warnings, *idle),
    )
