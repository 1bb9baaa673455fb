"""Make a merged model smaller: drop experts or merge them in groups, and drop layers.

Before: assemble.py says how each tensor of the merged model is made. Here: tensors of dropped experts and layers are left
out, the others of their kind are renumbered, and of tensors with an element for each expert (routers, stacked experts) some
are taken. So the output is what merging first and then dropping gives, with the same masks. After: planner.py gives
each tensor its place in a file.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np

from ..checkpoints.names import in_layer, layer_of, stacks
from ..checkpoints.parts import pieces
from ..checkpoints.tensors import Origin, StoredEntry, TensorEntry
from ..checkpoints.views import select
from ..conversion.lora.entry import AdaptedEntry
from ..conversion.modules import module_names
from ..conversion.moe.layers import MoeLayer, moe_layers
from ..conversion.vocabulary.entry import AlignedEntry, Pick
from ..errors import CheckpointError, MalformedError
from ..methods.linear import Linear
from ..methods.shared.method import ResolvedMethod
from ..recipe.keep_experts import Group, KeepExperts
from ..recipe.recipe import Recipe
from ..records import record
from . import expert_config
from .assemble import AssembledTensor
from .copies import masked_as
from .expert_choice import chosen
from .router_rows import router_rows
from .tensor_plan import StagedEntry

_EXPERT = "keep_experts leaves this expert out"
_LAYER = "drop_layers leaves this layer out"
MERGED = "the merge"  # the title of merged tensors that smaller ones are made of


@record(frozen=True)
class Smaller:
    """Hold the tensors of an output, which may have fewer experts or layers than the merged model.

    recipe: with the experts that were chosen. left_out: why stored tensors are not read. cut: how many bytes of stored
    tensors belong to what is dropped, by their origins. notes: on what is kept, for the plan and the model card.
    """

    tensors: Sequence[AssembledTensor]
    recipe: Recipe
    left_out: Mapping[Origin, str] = dataclasses.field(default_factory=dict)
    cut: Mapping[Origin, float] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()


def smaller(
    recipe: Recipe,
    made: Sequence[AssembledTensor],
    transposed: AbstractSet[str],
    layout: str | None,
    config: Mapping[str, Any],
    path: str,
) -> Smaller:
    """Return what is left of the merged model's tensors.

    transposed: names of matrices [in, out]. layout: None if unknown. config: the content of config.json, updated with its
    text_config. path: of the model, for messages. Raises CheckpointError listing what can't be dropped.
    """
    work, asked = _Work(recipe, made, transposed), recipe.keep_experts
    notes = list[str]()
    if asked is not None:
        every = _mixtures(made, config, layout, path)
        mixtures = {number: one for number, one in every.items() if number not in recipe.drop_layers} or every
        left = {number: one for number, one in asked.layers.items() if number in mixtures or number not in every}
        asked = dataclasses.replace(asked, layers=left)
        recipe = dataclasses.replace(recipe, keep_experts=work.drop_experts(asked, mixtures, config, path))
        notes.append(_said(asked, recipe.keep_experts, mixtures))
    if recipe.drop_layers:
        work.drop_layers(recipe.drop_layers, path)
        numbers = ", ".join(map(str, recipe.drop_layers))
        notes.append(f"layers {numbers} are dropped" if len(recipe.drop_layers) > 1 else f"layer {numbers} is dropped")
    return Smaller(work.tensors, recipe, work.left_out, work.cut, tuple(notes))


def _said(asked: KeepExperts, kept: KeepExperts | None, mixtures: Mapping[int, MoeLayer]) -> str:
    """Return a sentence on the experts that are kept."""
    number, one = next(iter(mixtures.items()))
    groups = (kept and kept.of(number)) or ()
    by = f", chosen by {asked.by}" if asked.count else ""
    merged = any(len(group) > 1 for its in (kept.layers.values() if kept else ()) for group in its)
    others = "others are merged into them" if merged else "the others are dropped"
    layers = f"each of {len(mixtures)} layers" if len(mixtures) > 1 else "the layer that has some"
    return f"{len(groups)} of {one.count} experts are kept in {layers}{by}; {others}"


def _mixtures(
    made: Sequence[AssembledTensor], config: Mapping[str, Any], layout: str | None, path: str
) -> dict[int, MoeLayer]:
    """Return the layers of experts by their numbers. Raises CheckpointError if there are none, or they aren't understood."""
    try:
        layers = moe_layers({one.name: one.sources[0] for one in made}, config, layout)
    except MalformedError as error:
        raise CheckpointError(f"{path}: {error}") from None
    found = dict[int, MoeLayer]()
    for prefix, one in layers.items():
        number = (layer_of(f"{prefix}.") or ("", -1))[1]
        if number < 0 or number in found:
            raise CheckpointError(f"{path}: keep_experts needs experts in one stack of numbered layers, unlike {prefix}")
        found[number] = one
    if not found:
        raise CheckpointError(f"{path}: has no experts of which keep_experts could keep some")
    return found


class _Work:
    """Drop experts, then layers. tensors: what is left."""

    def __init__(self, recipe: Recipe, made: Sequence[AssembledTensor], transposed: AbstractSet[str]):
        self._recipe, self._transposed = recipe, transposed
        self._masked_as = masked_as(made)
        self.tensors = list(made)
        self.left_out: dict[Origin, str] = {}
        self.cut: dict[Origin, float] = {}

    # --- experts

    def drop_experts(
        self, keep: KeepExperts, mixtures: Mapping[int, MoeLayer], config: Mapping[str, Any], path: str
    ) -> KeepExperts:
        """Leave experts out, or merge them; return which are kept. Raises CheckpointError."""
        its = {one.name: one for one in self.tensors}
        groups = chosen(keep, mixtures, functools.partial(router_rows, its), path, self._recipe.drop_layers)
        counts = {one.count for one in mixtures.values()}
        if len(counts) > 1:
            raise CheckpointError(
                f"{path}: its layers have {min(counts)} to {max(counts)} experts; keep_experts needs models that"
                " have as many in each layer"
            )
        kept = len(next(iter(groups.values())))
        if wrong := expert_config.problems(config, counts.pop(), kept, path):
            raise CheckpointError(wrong)
        made: dict[str, list[AssembledTensor]] = {}
        for number, one in mixtures.items():
            made |= self._experts(one, groups[number], its)
        self.tensors = [new for one in self.tensors for new in made.get(one.name, [one])]
        return KeepExperts(dict(groups.items()))

    def _experts(
        self, mixture: MoeLayer, groups: Sequence[Group], its: Mapping[str, AssembledTensor]
    ) -> dict[str, list[AssembledTensor]]:
        """Return what becomes of each tensor of a mixture: none, or one."""
        centres, said = [group[0][0] for group in groups], f"{len(groups)} of {mixture.count} experts"
        if list(groups) == [((expert, 1.0),) for expert in range(mixture.count)]:
            return {}
        made: dict[str, list[AssembledTensor]] = {}
        used = {expert for group in groups for expert, _ in group}
        for kind in mixture.experts:
            if kind.stacked:
                made[kind.names[0]] = [self._stacked(its[kind.names[0]], groups, said)]
                continue
            for expert, name in enumerate(kind.names):
                made[name] = []
                if expert not in used:
                    self._leave_out(its[name], _EXPERT)
            for place, group in enumerate(groups):
                each = [its[kind.names[expert]] for expert, _ in group]
                made[each[0].name] = [self._mean(each, group, kind.names[place])]
        for name, axis in mixture.router:
            made[name] = [self._some(its[name], axis, centres, said)]
        return made

    def _mean(self, experts: Sequence[AssembledTensor], group: Group, name: str) -> AssembledTensor:
        """Return the tensor `name` that is the weighted mean of those of a group of experts."""
        first = experts[0]
        if len(experts) == 1:
            return dataclasses.replace(first, name=name, was=first.name)
        weights = tuple(weight for _, weight in group)
        entries = tuple(self._entry(one) for one in experts)
        numbers = tuple(one.numbers[0] for one in experts)
        how = "weighted mean of several experts"
        return dataclasses.replace(_of(first, entries, numbers, weights), name=name, was=first.name, how=how)

    def _stacked(self, one: AssembledTensor, groups: Sequence[Group], how: str) -> AssembledTensor:
        """Return a stack of experts, [experts, ...], of which some are kept or merged."""
        if all(len(group) == 1 for group in groups):
            return self._some(one, 0, [group[0][0] for group in groups], how)
        entry, number = self._entry(one), one.numbers[0]
        self._cut(one, entry, 0, [expert for group in groups for expert, _ in group])
        picks = []
        for place, group in enumerate(groups):
            each = tuple(_part(entry, number, 0, [expert]) for expert, _ in group)
            mean = each[0]
            if len(group) > 1:
                plan = _of(one, each, (number,) * len(each), tuple(weight for _, weight in group))
                mean = self._staged(plan)
            picks.append(Pick(number, mean, _runs([0], place)))
        shape = (len(groups), *entry.shape[1:])
        made = AlignedEntry(one.name, entry.dtype, shape, 0, tuple(picks), remark="")
        return dataclasses.replace(_of(one, (made,), (number,), (1.0,)), how=f"{how}, others merged into them")

    def _some(self, one: AssembledTensor, axis: int, kept: Sequence[int], how: str) -> AssembledTensor:
        """Return the elements of some experts of a tensor that has one for each along `axis`."""
        if not one.sources[0].dtype.is_float:
            return dataclasses.replace(one, sources=tuple(_part(each, 0, axis, kept) for each in one.sources), how=how)
        entry = self._entry(one)
        self._cut(one, entry, axis, kept)
        return dataclasses.replace(_of(one, (_part(entry, one.numbers[0], axis, kept),), one.numbers[:1], (1.0,)), how=how)

    def _entry(self, one: AssembledTensor) -> TensorEntry:
        """Return a merged tensor as what others are made of: what it copies, if it copies something."""
        merger = one.resolved.merger
        copies = (
            one.base is None and one.resolved.sparsifier is None and isinstance(merger, Linear) and len(one.sources) == 1
        )
        if copies and list(merger.effective_weights(1)) == [1.0]:
            return one.sources[0]
        return self._staged(one)

    def _staged(self, one: AssembledTensor) -> StagedEntry:
        plan = one.plan(
            self._recipe,
            masked_as=self._masked_as[one.name],
            transposed=one.name in self._transposed,
        )
        return StagedEntry(one.name, plan.dtype, plan.shape, plan, MERGED)

    # --- layers

    def drop_layers(self, dropped: Sequence[int], path: str) -> None:
        """Leave layers out, and renumber the others. Raises CheckpointError."""
        found = stacks(one.name for one in self.tensors)
        text = [stack for stack, module in module_names(list(found)).items() if module == "text_decoder"]
        if len(found) != 1 and len(text) != 1:
            named = ", ".join(found) or "none"
            raise CheckpointError(
                f"{path}: drop_layers needs a model of one stack of layers, and it has {named}; write slices below modules"
            )
        (stack,) = list(found) if len(found) == 1 else text
        at = [layer_of(one.was or one.name) for one in self.tensors]
        numbers = sorted({place[1] for place in at if place is not None and place[0] == stack})
        if beyond := [number for number in dropped if number not in numbers]:
            raise CheckpointError(f"drop_layers: {path} has layers {numbers[0]} to {numbers[-1]}, and no layer {beyond[0]}")
        left = [number for number in numbers if number not in dropped]
        if not left:
            raise CheckpointError(f"drop_layers drops all {len(numbers)} layers of {path}")
        moved = {number: place for place, number in enumerate(left)}
        kept = list[AssembledTensor]()
        for one, place in zip(self.tensors, at, strict=True):
            if place is None or place[0] != stack:
                kept.append(one)
            elif place[1] in dropped:
                self._leave_out(one, _LAYER)
            else:
                name = in_layer(one.name, moved[place[1]])
                kept.append(one if name == one.name else dataclasses.replace(one, name=name, was=one.was or one.name))
        self.tensors = kept

    # --- what is not read

    def _leave_out(self, one: AssembledTensor, why: str) -> None:
        for entry in _stored(one.entries):
            for origin, _, nbytes in pieces(entry):
                self.left_out.setdefault(origin, why)
                self.cut[origin] = self.cut.get(origin, 0) + nbytes

    def _cut(self, one: AssembledTensor, entry: TensorEntry, axis: int, kept: Sequence[int]) -> None:
        """Note which elements of a stored tensor are not read, because other experts' are. (Of others all are read.)"""
        others = [place for place in range(entry.shape[axis]) if place not in kept]
        if isinstance(entry, StoredEntry) and others:
            for origin, _, nbytes in pieces(_part(entry, one.numbers[0], axis, others)):
                self.cut[origin] = self.cut.get(origin, 0) + nbytes


def _of(
    like: AssembledTensor, entries: tuple[TensorEntry, ...], numbers: tuple[int, ...], weights: tuple[float, ...]
) -> AssembledTensor:
    """Return the weighted sum of entries as a tensor of the output."""
    resolved = ResolvedMethod(None, Linear(weights, normalize=False))
    return dataclasses.replace(
        like, sources=entries, base=None, numbers=numbers, resolved=resolved, weights=weights, values=()
    )


def _part(entry: TensorEntry, number: int, axis: int, kept: Sequence[int]) -> TensorEntry:
    """Return the tensor of some indices along an axis, in this order. number: of its checkpoint.

    Raises CheckpointError if it is stored in a form that can't be cut.
    """
    if isinstance(entry, StoredEntry):
        try:
            return select(entry, axis, [(one, one + 1) for one in kept], entry.name)
        except MalformedError as error:
            raise CheckpointError(f"{entry.file}: tensor {entry.name!r} {error}") from None
    shape = (*entry.shape[:axis], len(kept), *entry.shape[axis + 1 :])
    return AlignedEntry(entry.name, entry.dtype, shape, axis, (Pick(number, entry, _runs(kept)),), remark="")


def _runs(kept: Sequence[int], first: int = 0) -> bytes:
    """Return the value of Pick.runs: that index kept[k] becomes index first + k."""
    return np.array([[first + place, one, 1, 1, 0] for place, one in enumerate(kept)], np.int64).tobytes()


def _stored(entries: Sequence[TensorEntry]) -> list[TensorEntry]:
    """Return what is read from checkpoints for entries: of earlier merges, their inputs."""
    found = list[TensorEntry]()
    for one in entries:
        found += [one] if isinstance(one, StoredEntry | AdaptedEntry) else _stored(one.made_of)
    return found
