"""Adapt config.json to layers that are stacked in a new order: how many there are, and the kind of each. A layer keeps its
kind (sliding attention, a mixture of experts, no rotary embedding) at its new place.

config.json gives kinds in these ways: by a list as long as the model is deep (layer_types, block_configs), a shorter list
that is repeated (block_types), a mapping by layers' numbers (per_layer_config), a list of layers' numbers (mlp_only_layers),
the first and the last layer of one kind (moe_layer_start_index), how many of the first layers are of one kind
(max_window_layers), or every how many layers one is (sliding_window_pattern). The last can't follow layers that are moved by
anything but its multiples: the user is told.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..checkpoints.config_json import read_config, widths
from ..checkpoints.names import EMBEDDINGS, HEAD, last_word, layer_of, stacks
from ..checkpoints.tensors import Checkpoint
from ..conversion.modules import module_names
from ..parsing import tensors_named
from ..recipe.recipe import Recipe
from ..records import record
from .tensor_plan import StagedEntry, TensorPlan

# What config.json calls the number of layers.
DEPTHS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "depth", "num_blocks", "decoder_layers", "layers")
# The parts of models that may have sections of their own there. Of sections that are tried, all count that give a depth; the
# last, "", is the whole file, which counts for parts other than the text only if no section does.
SECTIONS = {
    "text_decoder": ("text_config", "llm_config", "decoder", "decoder_config", ""),
    "vision_tower": ("vision_config", "encoder", "encoder_config", ""),
    "audio_tower": ("audio_config", "encoder", "encoder_config", ""),
    "encoder": ("encoder", "encoder_config", "text_encoder", ""),
    "decoder": ("decoder", "decoder_config", ""),
}
_NUMBERED = re.compile(r".*(_layers|_ids|_indices|_indexes|_idxs)")  # names of lists of layers' numbers
OF_ENCODERS = ("attention_window",)  # lists that belong to the encoder, also where the decoder is as deep
CYCLES = ("block_types",)
# Names of the first and the last layer of one kind, and of every how many layers between them are.
RANGES = (("moe_layer_start_index", "moe_layer_end_index", "moe_layer_interval"),)
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
    "cross_attention_frequency": "",
    "moe_layer_freq": "",
}
FURTHER = "num_nextn_predict_layers"
UNSAID = {"gemma2": 2}  # model_type -> the period that its older configs leave out, of layer_types


@record(frozen=True)
class Stack:
    """A stack of the output's layers.

    layers: the old number of each, with config.json, or a section of it, of the model that it comes from. depths: what
    config.json calls the number of layers. decodes: whether it is the decoder beside an encoder.
    """

    layers: tuple[tuple[int, Mapping[str, Any]], ...]
    depths: tuple[str, ...] = DEPTHS
    decodes: bool = False

    def without_further(self) -> tuple[Stack, int]:
        """Return the stack without the layers behind it that predict further tokens (DeepSeek's), and how many these are.

        config.json counts them apart, as num_nextn_predict_layers.
        """
        ends = [self._depth(own) if isinstance(own.get(FURTHER), int) else None for _, own in self.layers]
        kept = tuple(one for one, end in zip(self.layers, ends, strict=True) if end is None or one[0] < end)
        return replace(self, layers=kept), len(self.layers) - len(kept)

    def restack(self, model: Mapping[str, Any]) -> dict[str, Any]:
        """Return the entries of config.json, or of a section of it, that must change."""
        depth = self._depth(model)
        if depth is None:
            return {}
        new: dict[str, Any] = {name: len(self.layers) for name in self.depths if isinstance(model.get(name), int)}
        for name in model:
            if self.decodes and name in OF_ENCODERS:
                continue
            if (each := self._each(name, model, depth)) is not None:
                new[name] = each
            elif (mapped := self._mapped(name, model, depth)) is not None:
                new[name] = mapped
            elif (kinds := self._kinds(name, model)) is not None:
                listed = name not in FIRST
                new[name] = [number for number, kind in enumerate(kinds) if kind] if listed else _leading(kinds)
        for names in RANGES:
            if (kinds := self._within(names, model)) is not None and any(kinds):
                first, last = kinds.index(True), len(kinds) - 1 - kinds[::-1].index(True)
                new |= dict(zip(names, (first, last, 1), strict=True))
        if "layer_types" not in model and model.get("use_sliding_window") is True and isinstance(model.get(FIRST[0]), int):
            full = self._kinds(FIRST[0], model) or []
            if _leading(full) < sum(full):
                new["layer_types"] = ["full_attention" if kind else "sliding_attention" for kind in full]
        return new

    def problems(self, model: Mapping[str, Any]) -> Iterator[str]:
        """Yield sentences on what config.json can't say of these layers."""
        depth = self._depth(model) or 0
        for name, value in model.items():
            changes = self._each(name, model, depth) or self._mapped(name, model, depth) or self._kinds(name, model)
            if _NUMBERED.fullmatch(name) and isinstance(value, list) and value and changes is None and "token" not in name:
                yield (
                    f"{name!r} of config.json seems to list numbers of layers and is left unchanged: check whether they are"
                    " right"
                )
            counts = any(word in name for word in ("layer", "depth", "block")) and name not in (*self.depths, *FIRST)
            if counts and type(value) is int and value == depth != len(self.layers) and name not in RANGES[0]:
                yield (
                    f"{name!r} of config.json is {value}, as many as there were layers, and is left unchanged: check whether"
                    " it counts them"
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
        for names in RANGES:
            kinds = self._within(names, model) or []
            if any(kinds) and not all(kinds[kinds.index(True) : len(kinds) - kinds[::-1].index(True)]):
                yield (
                    f"{names[0]!r} and {names[1]!r} of config.json give the first and the last layer of one kind, and in the"
                    " output others lie between them: loaders will take them for that kind"
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
        if not _is_each(name, model[name], depth) and not _is_cycle(name, model[name]):
            return None
        found = []
        for number, own in self.layers:
            listed: list[Any] = own[name] if _is_each(name, own.get(name), self._depth(own) or 0) else model[name]
            if _is_cycle(name, own.get(name)):
                listed = [own[name][place % len(own[name])] for place in range(number + 1)]
            if number >= len(listed):
                return None
            found.append(listed[number])
        return found

    def _mapped(self, name: str, model: Mapping[str, Any], depth: int) -> dict[str, Any] | None:
        """Return a mapping by layers' numbers for the new numbers; None if the entry isn't one."""
        if not _by_number(name, model[name], depth):
            return None
        found = {}
        for place, (number, own) in enumerate(self.layers):
            its = own[name] if _by_number(name, own.get(name), self._depth(own) or 0) else model[name]
            if str(number) in its:
                found[str(place)] = its[str(number)]
        return found

    def _within(self, names: tuple[str, str, str], model: Mapping[str, Any]) -> list[bool] | None:
        """Return whether each layer is of the kind that begins and ends with layers of these numbers; None if the model has
        no such entries."""
        if not any(type(model.get(name)) is int for name in names[:2]):
            return None
        found = []
        for number, own in self.layers:
            first, last, every = (
                next((one[name] for one in (own, model) if type(one.get(name)) is int), -1) for name in names
            )
            within = first <= number and (number <= last or last < 0)  # -1, or no entry, is the end
            found.append(within and (number + 1) % max(1, every) == 0)
        return found

    def _kinds(self, name: str, model: Mapping[str, Any]) -> list[bool] | None:
        """Return whether each layer is of the kind that a list of numbers, or an entry in FIRST, gives; None for other
        entries."""
        if _are_numbers(name, model.get(name), self._depth(model) or 0):
            lists = [own[name] if isinstance(own.get(name), list) else model[name] for _, own in self.layers]
            return [number in its for (number, _), its in zip(self.layers, lists, strict=True)]
        if name in FIRST and isinstance(model.get(name), int):
            ends = [own[name] if isinstance(own.get(name), int) else model[name] for _, own in self.layers]
            return [number < end for (number, _), end in zip(self.layers, ends, strict=True)]
        return None


def restacked(
    config: Mapping[str, Any], recipe: Recipe, tensors: Sequence[TensorPlan], inputs: Sequence[Checkpoint]
) -> tuple[dict[str, Any], list[str]]:
    """Return config.json for the output's layers, if slices pick some; and sentences on what it can't say of them."""
    changed, worries = dict(config), list[str]()
    slices = [*recipe.slices, *(part for stage in recipe.stages for part in stage.slices)]
    if all(part.layers is None for part in slices) and not recipe.drop_layers:
        return changed, worries
    modules = module_names(list(stacks(tensor.name for tensor in tensors)))
    for name, module in modules.items():
        origins, moved = _origins(name, tensors, inputs)
        placed = False
        for section in SECTIONS.get(module, ("",)) if moved else ():
            its = changed.get(section) if section else changed
            others = module in ("vision_tower", "audio_tower") and (placed or len(modules) > 1)
            if not isinstance(its, dict) or (not section and (others or (placed and module != "text_decoder"))):
                continue
            whole = (f"{module}_layers", f"num_{module}_layers")
            depths: tuple[str, ...] = DEPTHS if section or module not in ("encoder", "decoder") else whole
            if module == "encoder":  # T5's is called like a decoder's elsewhere
                depths = (*whole, "num_hidden_layers", "num_layers", "n_layer", "n_layers", "depth")
            stack = Stack(tuple((number, own.get(section, own)) for number, own in origins), depths, module == "decoder")
            stack, further = stack.without_further()
            new = stack.restack(its) | ({FURTHER: further} if isinstance(its.get(FURTHER), int) else {})
            placed = placed or bool(new)
            worries += stack.problems(its) if new else ()
            changed = {**changed, section: {**its, **new}} if section else {**changed, **new}
        if moved and not placed and config:
            worries.append(
                f"config.json doesn't give the number of layers of {name} where it was expected; set it to {len(origins)}"
            )
    return changed, worries + (_as_wide_as_deep(tensors, inputs, config) if worries or changed != config else [])


def _as_wide_as_deep(tensors: Sequence[TensorPlan], inputs: Sequence[Checkpoint], config: Mapping[str, Any]) -> list[str]:
    """Return a sentence on the tensors in no layer that have a size for each layer of their model."""
    found = []
    rows = config.get("vocab_size")
    usual = {1, *widths(config).values(), *([rows] if type(rows) is int else [])}
    depths = [set(stacks(one.tensors).values()) - usual for one in inputs]
    for tensor in tensors:
        number, plain = tensor.numbers[0], last_word(tensor.name) in (*EMBEDDINGS, last_word(HEAD), "norm")
        if layer_of(tensor.name) is None and not plain and number < len(depths) and depths[number] & set(tensor.shape):
            found.append(tensor.name)
    if not found:
        return []
    return [
        f"{tensors_named(found)}, in no layer, may hold something for each layer of the model: check whether it still fits"
    ]


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
    listed = isinstance(value, list) and len(value) == depth > 0
    return listed and name != "architectures" and "token" not in name and not _are_numbers(name, value, depth)


def _is_cycle(name: str, value: Any) -> bool:
    """Whether an entry is a list that is repeated over the layers."""
    return name in CYCLES and isinstance(value, list) and bool(value)


def _by_number(name: str, value: Any, depth: int) -> bool:
    """Whether an entry is a mapping by layers' numbers (and not, as id2label is, by those of other things)."""
    return (
        "layer" in name
        and isinstance(value, dict)
        and bool(value)
        and all(str(key).isdecimal() and int(key) < depth for key in value)
    )


def _are_numbers(name: str, value: Any, depth: int) -> bool:
    """Whether an entry is a list of layers' numbers: each once, in ascending order."""
    if not _NUMBERED.fullmatch(name) or "token" in name or not isinstance(value, list):
        return False
    numbers = all(type(one) is int and 0 <= one < depth for one in value)
    return numbers and value == sorted(set(value)) and (len(value) < depth or value == list(range(depth)))


def _leading(kinds: Sequence[bool]) -> int:
    return next((place for place, kind in enumerate(kinds) if not kind), len(kinds))
