"""Adapt config.json to layers that are stacked in a new order: how many there are, and the kind of each. A layer keeps its
kind (sliding attention, a mixture of experts, no rotary embedding) at its new place.

config.json gives kinds in four ways: by a list as long as the model is deep (layer_types), a list of layers' numbers
(mlp_only_layers), how many of the first layers are of one kind (max_window_layers), or every how many layers one is
(sliding_window_pattern). The last can't follow layers that are moved by anything but its multiples: the user is told.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..checkpoints.config_json import read_config
from ..checkpoints.names import layer_of, stacks
from ..checkpoints.tensors import Checkpoint
from ..conversion.modules import module_names
from ..recipe.recipe import Recipe
from .plan import StagedEntry, TensorPlan

# What config.json calls the number of layers.
DEPTHS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "depth")
# The parts of models that have sections of their own there.
SECTIONS = {
    "text_decoder": ("", "text_config", "llm_config"),
    "vision_tower": ("vision_config",),
    "audio_tower": ("audio_config",),
}
NUMBERS = ("mlp_only_layers", "moe_layers", "full_attn_idxs", "attn_layer_indices", "cross_attention_layers")
FIRST = ("max_window_layers", "first_k_dense_replace", "num_dense_layers")
# Where each of these lists is, it counts, and the period doesn't.
PERIODS = {
    "sliding_window_pattern": "layer_types",
    "_sliding_window_pattern": "layer_types",
    "full_attention_interval": "layer_types",
    "global_attn_every_n_layers": "layer_types",
    "no_rope_layer_interval": "no_rope_layers",
    "interleave_moe_layer_step": "moe_layers",
    "attn_layer_period": "layers_block_type",
    "expert_layer_period": "",
    "decoder_sparse_step": "",
    "moe_layer_freq": "",
}
UNSAID = {"gemma2": 2}  # model_type -> the period that its older configs leave out, of layer_types


@dataclass(frozen=True)
class Stack:
    """A stack of the output's layers.

    layers: the old number of each, with config.json, or a section of it, of the model that it comes from. depths: what
    config.json calls the number of layers.
    """

    layers: tuple[tuple[int, Mapping[str, Any]], ...]
    depths: tuple[str, ...] = DEPTHS

    def restack(self, model: Mapping[str, Any]) -> dict[str, Any]:
        """Return the entries of config.json, or of a section of it, that must change."""
        depth = self._depth(model)
        if depth is None:
            return {}
        new: dict[str, Any] = {name: len(self.layers) for name in self.depths if name in model}
        for name in model:
            if (each := self._each(name, model, depth)) is not None:
                new[name] = each
            elif (kinds := self._kinds(name, model)) is not None:
                new[name] = [number for number, kind in enumerate(kinds) if kind] if name in NUMBERS else _leading(kinds)
        if "layer_types" not in model and model.get("use_sliding_window") is True and isinstance(model.get(FIRST[0]), int):
            full = self._kinds(FIRST[0], model) or []
            if _leading(full) < sum(full):
                new["layer_types"] = ["full_attention" if kind else "sliding_attention" for kind in full]
        return new

    def problems(self, model: Mapping[str, Any]) -> Iterator[str]:
        """Yield sentences on what config.json can't say of these layers."""
        depth = self._depth(model) or 0
        for name, value in model.items():
            if name.endswith("_indexes") and value:
                yield (
                    f"{name!r} of config.json lists numbers of layers and is left unchanged: check whether they are right"
                )
            if _is_each(name, value, depth) and self._each(name, model, depth) is None:
                yield (
                    f"{name!r} of config.json gives the kind of each layer, but not of every layer of the output: complete"
                    " the list in the output before you load it"
                )
            if name in FIRST and isinstance(value, int) and (kinds := self._kinds(name, model)) is not None:
                listed = "layer_types" in model or model.get("use_sliding_window") is not None
                if _leading(kinds) < sum(kinds) and not (name == FIRST[0] and listed):
                    yield (
                        f"{name!r} of config.json gives how many of the first layers are of one kind, and in the output such"
                        " layers also follow others, which it can't express: loaders will take them for the other kind"
                    )
        periods = {name: model[name] for name, by in PERIODS.items() if name in model and by not in model}
        if "layer_types" not in model and (hidden := UNSAID.get(str(model.get("model_type")))):
            periods[f"the {hidden} kinds of attention of model_type {model['model_type']}"] = hidden
        for name, period in periods.items():
            if isinstance(period, int) and period > 1:
                moved = [place for place, (number, _) in enumerate(self.layers) if (place - number) % period]
                if moved:
                    yield (
                        f"the kind of a layer follows from its number, by {name}{f' {period}' if name in model else ''}:"
                        f" layer {moved[0]} of the output was layer {self.layers[moved[0]][0]} and changes its kind; move"
                        f" layers by multiples of {period} to keep it"
                    )

    def _depth(self, model: Mapping[str, Any]) -> int | None:
        """Return the number of layers that config.json gives."""
        return next((model[name] for name in self.depths if isinstance(model.get(name), int)), None)

    def _each(self, name: str, model: Mapping[str, Any], depth: int) -> list[Any] | None:
        """Return the list of the layers' kinds, each from the model that the layer comes from; None if it isn't known
        for all."""
        if not _is_each(name, model[name], depth):
            return None
        found = []
        for number, own in self.layers:
            listed: list[Any] = own[name] if _is_each(name, own.get(name), self._depth(own) or 0) else model[name]
            if number >= len(listed):
                return None
            found.append(listed[number])
        return found

    def _kinds(self, name: str, model: Mapping[str, Any]) -> list[bool] | None:
        """Return whether each layer is of the kind that an entry in NUMBERS or FIRST gives; None for other entries."""
        if name in NUMBERS and isinstance(model.get(name), list):
            return [number in own.get(name, model[name]) for number, own in self.layers]
        if name in FIRST and isinstance(model.get(name), int):
            return [number < own.get(name, model[name]) for number, own in self.layers]
        return None


def restacked(
    config: Mapping[str, Any], recipe: Recipe, tensors: Sequence[TensorPlan], inputs: Sequence[Checkpoint]
) -> tuple[dict[str, Any], list[str]]:
    """Return config.json for the output's layers, if slices pick some; and sentences on what it can't say of them."""
    changed, worries = dict(config), list[str]()
    slices = [*recipe.slices, *(part for stage in recipe.stages for part in stage.slices)]
    if all(part.layers is None for part in slices):
        return changed, worries
    for name, module in module_names(list(stacks(tensor.name for tensor in tensors))).items():
        origins, moved = _origins(name, tensors, inputs)
        placed = False
        for section in SECTIONS.get(module, ("",)) if moved else ():
            its = changed.get(section) if section else changed
            if not isinstance(its, dict):
                continue
            depths = DEPTHS if module in SECTIONS else (f"{module}_layers", f"num_{module}_layers")
            if module == "encoder":  # T5's is called like a decoder's elsewhere
                depths = (*depths, *DEPTHS)
            stack = Stack(tuple((number, own.get(section, own)) for number, own in origins), depths)
            new = stack.restack(its)
            placed = placed or bool(new)
            worries += stack.problems(its) if new else ()
            changed = {**changed, section: {**its, **new}} if section else {**changed, **new}
        if moved and not placed and config:
            worries.append(
                f"config.json doesn't give the number of layers of {name} where it was expected; set it to {len(origins)}"
            )
    return changed, worries


def _origins(
    stack: str, tensors: Sequence[TensorPlan], inputs: Sequence[Checkpoint]
) -> tuple[list[tuple[int, Mapping[str, Any]]], bool]:
    """Return the old number of each layer of the output's stack, with config.json of the model that it comes from; and
    whether these are anything but all the layers of one model, in order."""
    found: dict[int, tuple[str, int, int]] = {}
    for tensor in tensors:
        if (at := layer_of(tensor.name)) is not None and at[0] == stack and at[1] not in found:
            plan = tensor
            while isinstance(first := plan.sources[0], StagedEntry):
                plan = first.plan
            found[at[1]] = *(layer_of(plan.sources[0].name) or at), plan.numbers[0]
    configs = {number: read_config(inputs[number].folder) for _, _, number in found.values()}
    name, _, number = found[min(found)]
    moved = any(place != number for place, (_, number, _) in found.items())
    moved = moved or len(configs) > 1 or len(found) != stacks(inputs[number].tensors).get(name)
    return [(found[place][1], configs[found[place][2]]) for place in sorted(found)], moved


def _is_each(name: str, value: Any, depth: int) -> bool:
    """Whether an entry is a list with an item for each layer."""
    plain = isinstance(value, list) and not any(isinstance(one, dict | list) for one in value)
    return plain and len(value) == depth > 0 and name != "architectures" and "token" not in name and name not in NUMBERS


def _leading(kinds: Sequence[bool]) -> int:
    return next((place for place, kind in enumerate(kinds) if not kind), len(kinds))
