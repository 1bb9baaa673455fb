"""Decide which tensors the output has, and which tensors of the inputs each is made of, whole models or slices of layers."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from ..checkpoints.names import in_layer, is_correction, layer_of, stacks
from ..checkpoints.tensors import Checkpoint, TensorEntry
from ..conversion.modules import within
from ..conversion.vocabulary.align import Aligner
from ..dtypes import BFLOAT16, FLOAT32, DType, ScaledForm
from ..errors import CheckpointError, ConfigError
from ..methods.linear import Linear
from ..methods.shared.method import ResolvedMethod
from ..parsing import tensors_named
from ..recipe.parameters import Resolver, unused
from ..recipe.recipe import Input, Recipe, Slice, Stage, names_of, parts
from ..records import record
from .modules import one_stack, problems
from .partial import Partial
from .scales import Scales
from .tensor_plan import StagedEntry, TensorPlan

REMEDY = "give the dtype of the output (dtype), or convert the models"
# Words of tensors that come before the layers; of several slices the first gives them, and the last what comes behind.
_BEFORE = ("emb", "wte", "wpe")
_BEHIND = "embed_out"  # GPT-NeoX's head


@record(frozen=True)
class AssembledTensor:
    """What a tensor of the output is made of, and how. The fields are as TensorPlan's."""

    name: str
    sources: tuple[TensorEntry, ...]
    base: TensorEntry | None
    numbers: tuple[int, ...]
    resolved: ResolvedMethod
    weights: tuple[float, ...]
    values: tuple[tuple[str, Any], ...]
    was: str = ""
    how: str = ""

    @property
    def entries(self) -> tuple[TensorEntry, ...]:
        return self.sources if self.base is None else (*self.sources, self.base)

    @property
    def made_of(self) -> tuple[Hashable, ...]:
        """What is read for the tensor, whatever it is called: equal for tensors that are the same in every input."""
        return tuple([entry.nameless for entry in self.entries])

    @property
    def shape(self) -> tuple[int, ...]:
        return self.sources[0].shape

    @property
    def own(self) -> TensorEntry:
        """The base's tensor, or else the first model's."""
        return self.base if self.base is not None else self.sources[0]

    @property
    def own_dtype(self) -> DType:
        return self.own.dtype

    def dtype(self, recipe: Recipe | Stage) -> DType:
        """Return the dtype of the output's plain numbers: the recipe's for floats, if it says one; else its own.

        What corrects the scores of experts isn't rounded below float32.
        """
        own = self.own_dtype
        if recipe.out_dtype is None or not own.is_float:
            return own
        asked = BFLOAT16 if isinstance(recipe.out_dtype, ScaledForm) else recipe.out_dtype
        return FLOAT32 if asked.itemsize < 4 <= own.itemsize and is_correction(self.name) else asked

    def plan(
        self,
        recipe: Recipe | Stage,
        *,
        masked_as: str,
        transposed: bool,
        shard: int = 0,
        offset: int = 0,
        dtype: DType | None = None,
        scales: Scales | None = None,
    ) -> TensorPlan:
        """Return the plan of the tensor; the arguments are as TensorPlan's fields. dtype: None: `dtype` of the recipe."""
        return TensorPlan(
            name=self.name,
            shape=self.shape,
            sources=self.sources,
            base=self.base,
            numbers=self.numbers,
            dtype=dtype or self.dtype(recipe),
            resolved=self.resolved,
            weights=self.weights,
            seed=recipe.seed,
            masked_as=masked_as,
            transposed=transposed,
            values=self.values,
            shard=shard,
            offset=offset,
            was=self.was,
            how=self.how,
            scales=scales,
        )


@record(frozen=True)
class _Place:
    """A tensor of the output: its slice, its layer counted from the slice's first (None: it is in no layer), and its
    position among all layers, from 0 to 1."""

    name: str
    part: Slice
    layer: int | None
    t: float


def assemble(
    recipe: Recipe | Stage,
    inputs: Sequence[Checkpoint],
    aligner: Aligner | None = None,
    averaged: Collection[str] = (),
    routers: Mapping[str, int] = MappingProxyType({}),
) -> tuple[list[AssembledTensor], list[str]]:
    """Return the output's tensors, in the order of the base's or else of the first model's; and a sentence on each
    filter that matches none of them.

    aligner: of the recipe's tokenizer, if it has one. averaged: names of tensors that the base lacks (heads.py). routers:
    the number of the input that gives a tensor as it is, by the tensor's name (expert_alignment.py). Raises
    CheckpointError, ConfigError.
    """
    resolver, partial, made = Resolver(recipe), Partial(recipe), []
    wrong, absent, unlike, differing = (dict[Any, list[str]]() for _ in range(4))  # what is wrong -> names of tensors
    if faults := problems(recipe, inputs):
        raise CheckpointError(faults)
    last: tuple[Slice, ResolvedMethod] | None = None
    for place in _places(recipe, inputs, partial.allowed):
        part, how = place.part, ""
        models = part.everything
        names = [_name_in(place, model) for model in models]
        entries = [inputs[model.number].tensors.get(name) for model, name in zip(models, names, strict=True)]
        if partial.allowed and None in entries:
            holders = partial.holders(part, entries)
            part, entries, how = holders.part, list(holders.entries), holders.how
            models, names = part.everything, [place.name] * len(entries)
        found = [entry for entry in entries if entry is not None]
        if aligner is not None and len(found) == len(entries):
            found = aligner.align(found, [model.number for model in models])
            entries = [*found]
        shape = found[0].shape if found else None
        if len(found) < len(entries) or [entry for entry in found if entry.shape != shape]:
            for model, name, entry in zip(models, names, entries, strict=True):
                if entry is None:
                    absent.setdefault(inputs[model.number].path, []).append(name)
                elif entry.shape != shape:
                    said = (
                        f"is {list(entry.shape)}, and {inputs[models[0].number].path}'s {names[0]!r} is"
                        f" {list(found[0].shape)}"
                    )
                    unlike.setdefault((inputs[model.number].path, models[0].number), []).append(f"tensor {name!r} {said}")
        if absent or unlike:
            continue
        if (differ := _differ(found, recipe)) is not None:
            differing.setdefault(differ, []).append(place.name)
            continue
        try:
            values = {} if how else resolver.values(part, place.name, place.t, names[: len(part.inputs)])
            resolved = _mean(len(found)) if how else resolver.resolved(values)
        except ValueError as error:
            wrong.setdefault(str(error), []).append(place.name)
            continue
        numbers = [model.number for model in models]
        if not found[0].dtype.is_float:
            found, numbers = _all_of(found, numbers)
        base = found.pop() if part.base is not None else None
        if place.name in averaged:
            base, resolved, values, how = None, _mean(len(found)), {}, f"mean of {len(found)} models"
            del numbers[len(found) :]
        if place.name in routers:
            numbers = [routers[place.name]]
            found, base = [inputs[numbers[0]].tensors[place.name]], None
            resolved, values, how = ResolvedMethod(None, Linear((1.0,))), {}, "the base's router"
        if last is None or last[0] is not part or last[1] is not resolved:  # else it has the same values and weights
            count = len(found) if place.name in routers else len(part.inputs)
            weights, items = tuple(resolved.merger.effective_weights(count)), tuple(values.items())
            last = part, resolved
        made.append(
            AssembledTensor(
                name=place.name,
                sources=tuple(found),
                base=base,
                numbers=tuple(numbers),
                resolved=resolved,
                weights=weights,
                values=items,
                how=how,
            )
        )
    for path, lacking in absent.items():
        lacking = list(dict.fromkeys(lacking))
        faults.append(f"{path}: has no {tensors_named(lacking)}, which the output is made of")
    for (path, _), sentences in unlike.items():
        more = f" (and {len(sentences) - 1} more tensors differ in shape)" if len(sentences) > 1 else ""
        faults.append(f"{path}: {sentences[0]}{more}")
    for dtypes, its in differing.items():
        verb = "is" if len(its) == 1 else "are"
        faults.append(f"{tensors_named(its)} {verb} made of tensors of different dtypes, {dtypes}; {REMEDY}")
    if faults:
        raise CheckpointError(faults)
    if wrong:
        raise ConfigError([f"{sentence} (for {tensors_named(its)})" for sentence, its in wrong.items()])
    return made, unused(recipe, resolver)


def _mean(models: int) -> ResolvedMethod:
    """Return the plain mean of so many models."""
    return ResolvedMethod(None, Linear((1.0,) * models))


def _differ(entries: Sequence[TensorEntry], recipe: Recipe | Stage) -> str | None:
    """Return the names of the entries' dtypes, if they can't be merged together."""
    if len({entry.dtype for entry in entries}) == 1:
        return None
    floats = all(entry.dtype.is_float for entry in entries)
    names = list(dict.fromkeys(entry.dtype.name for entry in entries))
    return None if floats and recipe.out_dtype else ", ".join(names)


def _all_of(entries: Sequence[TensorEntry], numbers: Sequence[int]) -> tuple[list[TensorEntry], list[int]]:
    """Replace integers of earlier merges by those of their inputs: integers must be equal everywhere, and are copied."""
    found: list[tuple[TensorEntry, int]] = []
    for entry, number in zip(entries, numbers, strict=True):
        inner = entry.plan if isinstance(entry, StagedEntry) else None
        found += zip(inner.inputs, inner.numbers, strict=True) if inner is not None else [(entry, number)]
    return [entry for entry, _ in found], [number for _, number in found]


def _name_in(place: _Place, model: Input) -> str:
    """Return the name of the tensor in an input."""
    return place.name if place.layer is None else in_layer(place.name, model.first + place.layer)


def _places(recipe: Recipe | Stage, inputs: Sequence[Checkpoint], of_all: bool = False) -> list[_Place]:
    """Return the places of all tensors. of_all: whether also those that only some inputs have."""
    places, modules = list[_Place](), names_of(recipe)
    for module, slices in parts(recipe):
        first = slices[0]
        if first.layers is not None:
            used = {part.inputs[0].number for part in slices}
            models = {number: inputs[number] for number in used}
            its = {number: within(one.tensors, module, modules) for number, one in models.items()}
            places += _sliced(slices, its, {number: one.path for number, one in models.items()})
            continue
        pattern = within(inputs[(first.base or first.inputs[0]).number].tensors, module, modules)
        if of_all:
            others = [inputs[one.number].tensors for one in first.everything]
            pattern = {**pattern, **{name: entry for tensors in others for name, entry in tensors.items()}}
        depths = stacks(pattern)
        places += [_Place(name, first, None, _t(layer_of(name), depths)) for name in pattern]
    return places


def _t(layer: tuple[str, int] | None, depths: dict[str, int]) -> float:
    """Return the position of a layer in its stack: 0 for the first layer, or none; 1 for the last, or the only one."""
    if layer is None:
        return 0.0
    stack, number = layer
    return min(1.0, number / (depths[stack] - 1)) if depths[stack] > 1 else 1.0


def _sliced(
    slices: Sequence[Slice], tensors: Mapping[int, Mapping[str, TensorEntry]], paths: Mapping[int, str]
) -> list[_Place]:
    """Return the places of a module that is made of slices.

    tensors, paths: of the first model of each slice, by its number. Raises CheckpointError where there isn't one stack of
    layers to slice.
    """
    first, last = slices[0], slices[-1]
    head = first.inputs[0].number
    stack, fault = one_stack(first, tensors[head], paths[head])
    if stack is None:
        raise CheckpointError(fault)
    tied = _tied(tensors[head])
    before = [name for name in tensors[head] if not layer_of(name) and (_comes_before(name) or name in tied)]
    places = [_Place(name, first, None, 0.0) for name in before]
    number = 0
    for part in slices:
        assert part.layers is not None
        like = tensors[part.inputs[0].number]
        for layer in range(part.layers):
            t = layer / (part.layers - 1) if part.layers > 1 else 1.0
            at = stack, part.inputs[0].first + layer
            mine = [name for name in like if layer_of(name) == at]
            if not mine:
                where = f"{part.at}: " if part.at else ""
                count = stacks(like).get(stack)
                held = f"; it has {count}, counted from 0" if count else ""
                raise CheckpointError(f"{where}{paths[part.inputs[0].number]}: has no layer {at[1]} of {stack}{held}")
            places += [_Place(in_layer(name, number), part, layer, t) for name in mine]
            number += 1
    tail = tensors[last.inputs[0].number]
    behind = [name for name in tail if not layer_of(name) and not _comes_before(name) and name not in tied]
    return places + [_Place(name, last, None, 0.0) for name in behind]


def _tied(tensors: Mapping[str, TensorEntry]) -> set[str]:
    """Return the names of tensors that are the same as one before the layers: lm_head in Paddle's files, if it is tied."""
    embeddings = {one.nameless for name, one in tensors.items() if not layer_of(name) and _comes_before(name)}
    return {name for name, one in tensors.items() if not _comes_before(name) and one.nameless in embeddings}


def _comes_before(name: str) -> bool:
    return any(word in name for word in _BEFORE) and _BEHIND not in name
