"""Account for a plan: how every tensor of the output is made, and what happens to every tensor of every input.

Each stored tensor is followed by its elements, through renaming, transposing, cutting, joining and folding, to where
they are read. Elements that would be lost on the way, by whatever fault, are found here, before a byte is written.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..checkpoints.names import layer_of
from ..checkpoints.parts import as_boxes
from ..checkpoints.scaled import ScaledEntry
from ..checkpoints.tensors import Origin, Part, StoredEntry, TensorEntry, origins, stored, width
from ..conversion.lora.entry import AdaptedEntry
from ..conversion.modules import module_of
from ..errors import CheckpointError, MalformedError
from .modules import taken
from .plan import Plan
from .tensor_plan import StagedEntry, TensorPlan, leaves


@dataclass(frozen=True)
class TensorAccount:
    """A tensor of the output. dtypes: of each input. how: in a word or a few. notes: on what is special about it, each
    true of every tensor of its kind. sources: for each input the names, there, of what it is made of. values: the method's
    parameters, resolved for it."""

    name: str
    shape: tuple[int, ...]
    dtypes: tuple[str, ...]
    dtype: str
    how: str
    notes: tuple[str, ...]
    sources: tuple[tuple[str, ...], ...]
    values: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class InputTensorAccount:
    """A tensor of an input or adapter. into: names of the output's tensors that read it. why: the reason why none does."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    into: tuple[str, ...]
    why: str = ""


@dataclass(frozen=True)
class InputAccount:
    """A checkpoint, or an adapter to fold into one. role: such as "model 1", "base" or "adapter of model 1".

    number: of the input. tensors: as they are stored.
    """

    path: str
    role: str
    number: int
    tensors: Mapping[str, TensorEntry]
    _account: Account

    @cached_property
    def fates(self) -> tuple[InputTensorAccount, ...]:
        """What happens to each tensor."""
        return tuple(self._fate(name) for name in self.tensors)

    @cached_property
    def left_out(self) -> list[InputTensorAccount]:
        """The tensors of which nothing is read."""
        others = (name for name, entry in self.tensors.items() if not self._account.reads_whole(entry))
        return [fate for fate in map(self._fate, others) if not fate.into]

    def _fate(self, name: str) -> InputTensorAccount:
        return self._account.ledger.fate(self.number, (self.path, name), self.tensors[name])


@dataclass(frozen=True)
class Account:
    """What becomes of the inputs of a plan, and how the tensors of the output are made."""

    plan: Plan

    @cached_property
    def ledger(self) -> _Ledger:
        return _Ledger(self.plan)

    @cached_property
    def _whole(self) -> set[int]:
        entries = [entry for tensor in self.plan.tensors for _, entry in leaves(tensor)]
        return {id(one) for entry in entries for one in (entry.made_of if isinstance(entry, ScaledEntry) else (entry,))}

    def reads_whole(self, entry: TensorEntry) -> bool:
        """Return whether a tensor of an input is read as it is stored, so all of it. Most are, which saves much time."""
        return id(entry) in self._whole

    def losses(self) -> list[str]:
        """Return a sentence on each tensor of the inputs of which elements would be lost."""
        return [
            sentence
            for one in self.inputs
            for name, entry in one.tensors.items()
            if not self.reads_whole(entry) and (sentence := self.ledger.loss(one.number, (one.path, name), entry))
        ]

    @cached_property
    def inputs(self) -> tuple[InputAccount, ...]:
        """The checkpoints, each followed by its adapters."""
        found = list[InputAccount]()
        for number, (checkpoint, adapters) in enumerate(self.plan.opened):
            base = self.plan.recipe.base is not None and number == len(self.plan.recipe.models)
            role = "base" if base else f"model {number + 1}"
            found.append(InputAccount(checkpoint.path, role, number, checkpoint.tensors, self))
            found += [InputAccount(one.path, f"adapter of {role}", number, one.tensors, self) for one in adapters]
        return tuple(found)

    @cached_property
    def made(self) -> tuple[TensorAccount, ...]:
        """The tensors of the output, in its order."""
        held = [{stored(one).origin: one for one in checkpoint.tensors.values()} for checkpoint, _ in self.plan.opened]
        return tuple(_made(tensor, self.plan, held) for tensor in self.plan.tensors)


def account(plan: Plan) -> Account:
    """Return the account of a plan. Raises CheckpointError naming every tensor of which elements would be lost."""
    found = Account(plan)
    if problems := found.losses():
        raise CheckpointError(problems)
    return found


# --- inputs ------------------------------------------------------------------------------------------------------------


class _Ledger:
    """Which tensors of the output read which elements of the inputs and their adapters."""

    def __init__(self, plan: Plan):
        self._readers: dict[Origin, list[str]] = defaultdict(list)
        self._boxes: dict[Origin, dict[object, float]] = defaultdict(dict)
        self._scales: set[Origin] = set()  # which are read where codes of their blocks are, by several tensors or by one
        self._why: dict[Origin, str] = dict(plan.left_out)
        self._cut = plan.cut
        self._tied = plan.tied
        for tensor in plan.tensors:
            for _, entry in leaves(tensor):
                self._read(tensor.name, entry)
        self._takes = taken(plan.recipe)

    def _read(self, name: str, entry: TensorEntry) -> None:
        for origin, box, nbytes in pieces(entry):
            readers = self._readers[origin]
            if not readers or readers[-1] != name:
                readers.append(name)
            self._boxes[origin][box] = nbytes
        self._scales |= {origin for scaled in _quantised(entry) for one in scaled.made_of[1:] for origin in origins(one)}
        while isinstance(entry, AdaptedEntry) and entry.replaced is not None:
            entry = entry.replaced
            for origin, _, _ in pieces(entry):
                self._why[origin] = f"an adapter replaces {name!r}"

    def loss(self, number: int, origin: Origin, entry: TensorEntry) -> str:
        """Return a sentence on a tensor of input `number` of which elements are lost; "" if none are."""
        read = sum(self._boxes[origin].values())
        whole = entry.nbytes in (read, read + self._cut.get(origin, 0)) or origin in self._scales
        if (self._readers[origin] and whole) or self._why_not(number, origin):
            return ""
        size, read = math.prod(entry.shape), int(read / entry.dtype.itemsize)
        return (
            f"{origin[0]}: of tensor {origin[1]!r}, {read} of {size} elements are read; the rest would be lost. This is a"
            " fault of paddle_merge: please report it"
        )

    def fate(self, number: int, origin: Origin, entry: TensorEntry) -> InputTensorAccount:
        """Return what happens to a tensor that input `number` stores."""
        into, why = tuple(self._readers[origin]), self._why_not(number, origin)
        return InputTensorAccount(origin[1], entry.shape, entry.dtype.name, into, why)

    def _why_not(self, number: int, origin: Origin) -> str:
        """Return why no tensor of the output reads a tensor; "" if one does, or if the reason isn't known."""
        if self._readers[origin]:
            return ""
        why = self._why.get(origin, "") or self._not_asked_for(number, origin[1])
        if not why and "lm_head" in origin[1]:
            same = "the same as the embedding's, to which lm_head is tied"
            why = "the output ties lm_head to the embedding" if self._tied else same
        return why

    def _not_asked_for(self, number: int, name: str) -> str:
        """Return why the recipe doesn't use a tensor; "" if it does."""
        if number not in self._takes:
            return "the recipe merges nothing of it"
        layer, why = layer_of(name), "the recipe takes this module of other models"
        for claim in self._takes[number]:
            if claim.module is not None and module_of(name, claim.modules) != claim.module:
                continue
            if claim.layers is None or (layer is not None and layer[1] in claim.layers):
                return ""
            why = "no slice takes it"
        return why


def pieces(entry: TensorEntry) -> list[tuple[Origin, object, float]]:
    """Return (origin, box, number of bytes) of what is read for a tensor. Boxes with the same elements are equal."""
    if not isinstance(entry, StoredEntry):
        return [piece for one in entry.made_of for piece in pieces(one)]
    if not entry.parts:
        size = math.prod(entry.shape)
        return [(entry.origin, (entry.file, entry.offset, ((size, 1),) if size != 1 else ()), entry.nbytes)]
    return [
        (part.origin, (part.file, part.offset, _dims(part.shape, part.strides)), math.prod(part.shape) * width(part, entry))
        for part in entry.parts
    ]


def _quantised(entry: TensorEntry) -> list[ScaledEntry]:
    """Return the quantised tensors that a tensor is made of."""
    if isinstance(entry, StoredEntry):
        return []
    return [entry] if isinstance(entry, ScaledEntry) else [found for one in entry.made_of for found in _quantised(one)]


def _dims(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Return sizes and strides by falling stride, with dimensions merged that lie together."""
    found: list[tuple[int, int]] = []
    for stride, size in sorted(zip(strides, shape, strict=True), reverse=True):
        if size == 1:
            continue
        if found and found[-1][1] == size * stride:
            found[-1] = found[-1][0] * size, stride
        else:
            found.append((size, stride))
    return tuple(found)


# --- the output --------------------------------------------------------------------------------------------------------


def _made(tensor: TensorPlan, plan: Plan, held: list[dict[Origin, TensorEntry]]) -> TensorAccount:
    remarks: dict[str, list[str]] = {}
    for entry, number in zip(tensor.inputs, tensor.numbers, strict=True):
        if isinstance(entry, StoredEntry) and _is_whole(entry, held[number].get(entry.origin)):
            continue
        for remark in dict.fromkeys(_remarks(entry, number, held)):
            remarks.setdefault(remark, []).append(plan.recipe.titles[number])
    everywhere = len(tensor.inputs)
    notes = [remark if len(paths) == everywhere else f"{remark} in {', '.join(paths)}" for remark, paths in remarks.items()]
    if tensor.masked_as not in ("", tensor.name, tensor.was) and plan.recipe.mixture is None:
        notes.append(f"tied to {tensor.masked_as}: the same bytes, the same masks")
    if tensor.scales is not None:
        rows, columns = tensor.scales.block
        word = tensor.scales.name.rpartition(".")[2]
        notes.append(f"with a scale for each block of {rows} x {columns} ({word})")
    if plan.recipe.missing_tensors in ("union", "fill"):
        lacking = [plan.recipe.titles[number] for number in plan.recipe.taken if number not in tensor.numbers]
        notes += [f"not in {', '.join(lacking)}"] if lacking and tensor.merged else []
    folded = any(isinstance(entry, AdaptedEntry) for entry in tensor.inputs)
    if tensor.how:
        how = tensor.how
    elif not tensor.merged:
        how = f"copied from {stored(tensor.inputs[-1]).file}, equal in all inputs"
    elif plan.recipe.title == "fold":
        how = "folded" if folded else "as it is"
    else:
        base = " and the base" if tensor.base is not None else ""
        how = f"{plan.recipe.title} of {len(tensor.sources)} model{'s' if len(tensor.sources) > 1 else ''}{base}"
    return TensorAccount(
        name=tensor.name,
        shape=tensor.shape,
        dtypes=tuple((entry.stored if isinstance(entry, AdaptedEntry) else entry).dtype.name for entry in tensor.inputs),
        dtype=tensor.dtype.name,
        how=how,
        notes=tuple(notes),
        sources=tuple(_names_in(entry) for entry in tensor.inputs),
        values=tensor.values if tensor.merged else (),
    )


def _names_in(entry: TensorEntry) -> tuple[str, ...]:
    """Return the names, in its checkpoint, of what is read for a tensor."""
    if isinstance(entry, StoredEntry) and not entry.parts:
        return (entry.origin[1],)
    return tuple(dict.fromkeys(name for (_, name), _, _ in pieces(entry)))


def _remarks(entry: TensorEntry, number: int, held: Sequence[Mapping[Origin, TensorEntry]]) -> Iterator[str]:
    """Yield what is done to the tensor of input `number` before it is merged, in this order. held: what each checkpoint
    stores."""
    if not isinstance(entry, StagedEntry):
        parts = entry.parts_of(number)
        for its, part in parts:
            yield from _remarks(part, number, held) if its == number else ()
        for read in () if parts else entry.in_blocks:
            yield from _moved(read, held[number])
    yield from entry.remarks


def _moved(read: StoredEntry, held: Mapping[Origin, TensorEntry]) -> Iterator[str]:
    """Yield how a tensor is taken from what a checkpoint stores."""
    found = list(dict.fromkeys(origin for origin, _, _ in pieces(read)))
    words = [_word(name) for _, name in found]
    if len(found) > 1:
        yield f"joined from {', '.join(words)}"
    elif found and found[0] in held and held[found[0]].nbytes > sum(nbytes for _, _, nbytes in pieces(read)):
        yield f"cut out of {words[0]}"
    if found and found[0] in held and _is_transposed(read, held[found[0]]):
        yield f"transposed {_axes(read.shape[::-1])} -> {_axes(read.shape)}"


def _is_whole(entry: StoredEntry, held: TensorEntry | None) -> bool:
    """Whether an entry is a tensor as a checkpoint stores it, in one piece. Most are, so this saves much time."""
    return isinstance(held, StoredEntry) and not entry.parts and not held.parts and held.shape == entry.shape


def _axes(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _word(name: str) -> str:
    """Return the layer that a tensor belongs to: q_proj of model.layers.0.self_attn.q_proj.weight."""
    words = name.split(".")
    return words[-2] if len(words) > 1 else name


def _is_transposed(entry: TensorEntry, stored: TensorEntry) -> bool:
    """Whether a matrix is read transposed."""
    if len(entry.shape) != 2 or len(stored.shape) != 2 or min(entry.shape) < 2:
        return False
    try:
        strides, before = (_first(one).strides for one in (entry, stored))
    except MalformedError:  # stored in pieces of text, which can't be transposed
        return False
    return strides != before and strides == before[::-1]


def _first(entry: TensorEntry) -> Part:
    return as_boxes(entry)[0]
