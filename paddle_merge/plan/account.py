"""Account for a plan: how every tensor of the output is made, and what happens to every tensor of every input.

Each stored tensor is followed by its elements, through renaming, transposing, cutting, joining and folding, to where
they are read. Elements that would be lost on the way, by whatever fault, are found here, before a byte is written.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from functools import cached_property

from ..checkpoints.names import layer_of
from ..checkpoints.parts import pieces
from ..checkpoints.scaled import ScaledEntry
from ..checkpoints.tensors import Origin, StoredEntry, TensorEntry, origins, stored, width
from ..conversion.lora.entry import AdaptedEntry
from ..conversion.modules import module_of
from ..errors import CheckpointError
from ..records import record
from .modules import taken
from .plan import Plan
from .tensor_account import TensorAccount, tensor_account
from .tensor_plan import leaves


@record(frozen=True)
class InputTensorAccount:
    """A tensor of an input or adapter. into: names of the output's tensors that read it. why: the reason why none does."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    into: tuple[str, ...]
    why: str = ""


@record(frozen=True)
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


@record(frozen=True)
class Account:
    """What becomes of the inputs of a plan, and how the tensors of the output are made."""

    plan: Plan

    @cached_property
    def ledger(self) -> _Ledger:
        return _Ledger(self.plan)

    @cached_property
    def _whole(self) -> tuple[set[int], dict[Origin, float]]:
        """The ids of the entries that are read as they are stored; and of what is read in one piece, the bytes by origin."""
        read, turned = set[int](), dict[Origin, float]()
        waiting = [entry for tensor in self.plan.tensors for _, entry in leaves(tensor)]
        for entry in waiting:
            if isinstance(entry, StoredEntry):
                read.add(id(entry))
                if len(entry.parts) == 1:
                    (part,) = entry.parts
                    turned[part.origin] = math.prod(part.shape) * width(part, entry)
            elif isinstance(entry, ScaledEntry | AdaptedEntry):
                waiting += entry.made_of
        return read, turned

    def reads_whole(self, entry: TensorEntry) -> bool:
        """Return whether a tensor of an input is read as it is stored, or transposed, so all of it. Most are, which saves
        much time."""
        read, turned = self._whole
        return id(entry) in read or turned.get(stored(entry).origin) == entry.nbytes

    def losses(self) -> list[str]:
        """Return a sentence on each tensor of the inputs of which elements would be lost."""
        read, _ = self._whole
        return [
            sentence
            for one in self.inputs
            for name, entry in one.tensors.items()
            if id(entry) not in read
            and not self.reads_whole(entry)
            and (sentence := self.ledger.loss(one.number, (one.path, name), entry))
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
        return tuple(tensor_account(tensor, self.plan, held) for tensor in self.plan.tensors)


def account(plan: Plan) -> Account:
    """Return the account of a plan. Raises CheckpointError naming every tensor of which elements would be lost."""
    found = Account(plan)
    if problems := found.losses():
        raise CheckpointError(problems)
    return found


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


def _quantised(entry: TensorEntry) -> list[ScaledEntry]:
    """Return the quantised tensors that a tensor is made of."""
    if isinstance(entry, StoredEntry):
        return []
    return [entry] if isinstance(entry, ScaledEntry) else [found for one in entry.made_of for found in _quantised(one)]
