"""Find out which tensors can be measured in which models, and which ones a merge would refuse."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import field

from ...checkpoints.compare import differing
from ...checkpoints.tensors import Checkpoint, TensorEntry
from ...dtypes import DType
from ...methods.linear import Linear
from ...methods.shared.method import ResolvedMethod
from ...plan.tensor_plan import TensorPlan
from ...records import record

SUM = ResolvedMethod(
    None, Linear((), normalize=False)
)  # of which nothing is asked: methods are measured one after the other


@record(frozen=True)
class Compared:
    """A tensor of the base, and of the models that have it in the same shape. sources: by number of the model, ascending."""

    base: TensorEntry
    sources: Mapping[int, TensorEntry]

    @property
    def name(self) -> str:
        """The tensor's name."""
        return self.base.name

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.base.shape)

    @property
    def entries(self) -> list[TensorEntry]:
        """The tensor in the models, and then in the base."""
        return [*self.sources.values(), self.base]

    @property
    def dtypes(self) -> list[DType]:
        """The dtype of each entry."""
        return [entry.dtype for entry in self.entries]

    @property
    def nbytes(self) -> int:
        """The number of bytes of the tensor in all checkpoints together."""
        return self.size * sum([dtype.itemsize for dtype in self.dtypes])

    def as_merged(self) -> TensorPlan:
        """Return the plan of a merge that reads the tensor, with masks of seed 0."""
        sources = tuple(self.sources.values())
        return TensorPlan(
            name=self.name,
            shape=self.base.shape,
            sources=sources,
            base=self.base,
            numbers=tuple(range(len(sources) + 1)),
            dtype=self.base.dtype,
            resolved=SUM,
            weights=(1.0,) * len(sources),
            seed=0,
            masked_as=self.name,
        )

    def without(self, models: Sequence[int]) -> Compared:
        """Return the same without some of the models."""
        return Compared(self.base, {model: entry for model, entry in self.sources.items() if model not in models})


@record(frozen=True)
class Survey:
    """The tensors of all checkpoints, sorted by what can be done with them. Models are given by number, the base as None.

    compared: the floating-point tensors of the base, which are measured. missing: tensor -> the checkpoints without it.
    shapes: tensor -> the models in which its shape isn't that of the base. unmerged: tensor of integers or booleans, which
    merges copy -> the models in which it differs from the base. shared: tensor that is stored in the same bytes as another
    -> that one, which is measured for both.
    """

    compared: list[Compared] = field(default_factory=list)
    missing: dict[str, list[int | None]] = field(default_factory=dict)
    shapes: dict[str, list[int]] = field(default_factory=dict)
    unmerged: dict[str, list[int]] = field(default_factory=dict)
    shared: dict[str, str] = field(default_factory=dict)


def survey(models: Sequence[Checkpoint], base: Checkpoint) -> Survey:
    """Sort the tensors by the headers; integers and booleans are read and compared. Raises WorkError."""
    found = Survey()
    first: dict[tuple[Hashable, ...], str] = {}
    for name in dict.fromkeys(name for one in (base, *models) for name in one.tensors):
        sources = {number: one.tensors[name] for number, one in enumerate(models) if name in one.tensors}
        reference = base.tensors.get(name)
        without: list[int | None] = [number for number in range(len(models)) if number not in sources]
        if reference is None or without:
            found.missing[name] = [*without, None] if reference is None else without
        if reference is None:
            continue
        if shapes := [number for number, entry in sources.items() if entry.shape != reference.shape]:
            found.shapes[name] = shapes
        tensor = Compared(reference, sources).without(shapes)
        entries = [reference, *tensor.sources.values()]
        if not all(entry.dtype.is_float for entry in entries):
            found.unmerged[name] = _other_than_base(tensor)
        elif tensor.sources:
            made_of = tuple(entry.nameless for entry in entries)
            twin = first.setdefault(made_of, name) if reference.nbytes else name
            if twin == name:
                found.compared.append(tensor)
            else:
                found.shared[name] = twin
    return found


def _other_than_base(tensor: Compared) -> list[int]:
    alike = {number: entry for number, entry in tensor.sources.items() if entry.dtype == tensor.base.dtype}
    other = [number for number in tensor.sources if number not in alike]
    moved = differing([tensor.base, *alike.values()])
    return sorted([*other, *(number for number, entry in alike.items() if entry in moved)])
