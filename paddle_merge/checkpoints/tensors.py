"""Describe the tensors of a checkpoint: name, dtype, shape, and where the elements are stored or what they are made of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ..dtypes import DType

MAX_DIMS = 64  # of a tensor, as NumPy 2 has it
MAX_SIZE = 1 << 59  # elements, empty dimensions aside: what NumPy and others can still address

TEXT_STEP = 1 << 16  # characters between the places that Part.text gives
Origin = tuple[str, str]  # the path of an input or adapter, and the name that a tensor has there
_ORIGIN: Any = field(default=("", ""), compare=False, repr=False)


@dataclass(frozen=True)
class Part:
    """A box of a tensor: the `shape` elements from index `at` on lie in `file` from byte `offset` on, `strides` apart.

    at, shape, strides: one number per dimension of the tensor, in elements; or one number each, for a run of the tensor's
        elements in row-major order.
    origin: the tensor that it is, or was cut out of, as it is stored; known in a merge's inputs.
    text: of bytes that are stored as UTF-8 (pickle protocol 2), one character per byte: the offsets in `file` of characters
        0, TEXT_STEP, 2 * TEXT_STEP ... and of the end. Else empty.
    """

    file: str
    offset: int
    at: tuple[int, ...]
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    text: tuple[int, ...] = ()
    origin: Origin = _ORIGIN


@dataclass(frozen=True)
class LowRank:
    """A change of a matrix (rows, columns): scale * left @ middle @ right is added.

    left: (rows, r), None for a single 1; middle: (r, r) or None; right: (r, columns), or (columns,) if r is 1.
    A vector (columns,) is a matrix of one row.
    """

    left: TensorEntry | None
    right: TensorEntry
    scale: float
    middle: TensorEntry | None = None

    @property
    def entries(self) -> list[TensorEntry]:
        return [entry for entry in (self.left, self.middle, self.right) if entry is not None]


@dataclass(frozen=True)
class Lengths:
    """A change of a matrix: every row (axis 0) or column (axis 1) is brought to the length given for it."""

    lengths: TensorEntry
    axis: int

    @property
    def entries(self) -> list[TensorEntry]:
        return [self.lengths]


@dataclass(frozen=True)
class Adapted:
    """A tensor that is not stored as it is merged: `stored`, of any float dtype, with the changes made to it in order.

    replaced: what stood there before, if `stored` is an adapter's; it is not read.
    """

    stored: TensorEntry
    changes: tuple[LowRank | Lengths, ...] = ()
    replaced: TensorEntry | None = field(default=None, compare=False, repr=False)

    @property
    def entries(self) -> list[TensorEntry]:
        return [self.stored, *(entry for change in self.changes for entry in change.entries)]


@dataclass(frozen=True)
class Staged:
    """A tensor that an earlier merge of the same recipe makes. plan: its TensorPlan; seed: of masks; title: of the merge."""

    plan: Any
    seed: int
    title: str


@dataclass(frozen=True)
class Pick:
    """Rows of a tensor (axis 1: columns) that become rows of an aligned one.

    number: of its checkpoint, in Recipe.titles. runs: (n, 5) int64, as bytes so that entries can be compared, in order: the
    first row there, the first row of this one, how many; of how many tensors those rows are the mean, and this one's place
    among them.
    """

    number: int
    entry: TensorEntry
    runs: bytes


@dataclass(frozen=True)
class Aligned:
    """A tensor with a row (axis 1: a column) per token, put together anew from rows of several. Rows that no pick gives are
    zeros; means: (n, 2) int64, likewise, first row and how many: those that are the mean of all others."""

    shape: tuple[int, ...]
    axis: int
    picks: tuple[Pick, ...]
    means: bytes = b""


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies: `nbytes` contiguous little-endian bytes at `offset` of `file`, in row-major order; or, if there
    are parts, wherever they lie (then file and offset are the first part's); or, if it is adapted, staged or aligned, what
    it is made of.

    origin: as Part.origin; of one that has parts, theirs count."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    file: str
    offset: int
    nbytes: int
    parts: tuple[Part, ...] = ()
    adapted: Adapted | None = None
    origin: Origin = _ORIGIN
    staged: Staged | None = None
    aligned: Aligned | None = None

    @property
    def made_of(self) -> Sequence[TensorEntry]:
        """What is read instead, of one that is not stored as it is."""
        if self.adapted is not None:
            return self.adapted.entries
        if self.aligned is not None:
            return [pick.entry for pick in self.aligned.picks]
        return self.staged.plan.inputs if self.staged is not None else ()

    @property
    def widened(self) -> bool:
        """Whether it is handed on in what it is merged in, instead of as it is stored."""
        return self.adapted is not None or self.aligned is not None

    @property
    def files(self) -> set[str]:
        if self.made_of:
            return {file for entry in self.made_of for file in entry.files}
        return {part.file for part in self.parts} or {self.file}

    @property
    def factor_bytes(self) -> int:
        """What is known of it in memory while it is read: its changes, as float64 and once more in what it is merged in;
        which rows become which."""
        changes = self.adapted.changes if self.adapted is not None else ()
        found = 16 * sum(math.prod(entry.shape) for change in changes for entry in change.entries)
        if self.aligned is not None:
            picks, rows = self.aligned.picks, self.aligned.shape[self.aligned.axis]
            found += sum(2 * len(pick.runs) + pick.entry.factor_bytes for pick in picks)
            found += (rows * (16 + 24 * len(picks))) if self.aligned.axis else 16 * math.prod(self.shape[1:])
        return found

    @property
    def whole(self) -> bool:
        """Whether no part of it is known before all of it has been looked at."""
        if self.staged is not None:
            return self.staged.plan.resolved.measures or any(entry.whole for entry in self.staged.plan.inputs)
        if self.aligned is not None:
            return bool(self.aligned.means) or any(pick.entry.whole for pick in self.aligned.picks)
        return self.adapted is not None and any(isinstance(change, Lengths) for change in self.adapted.changes)

    @cached_property
    def scattered(self) -> bool:
        """Whether neighbouring elements lie apart, as in a transposed matrix."""
        return any(part.shape and part.shape[-1] > 1 and part.strides[-1] != 1 for part in self.parts)


@dataclass(frozen=True)
class Checkpoint:
    """What the headers of one checkpoint say.

    path: as the user gave it.
    folder: where its config and tokenizer files are.
    format: the safetensors metadata `format` ("pt", "np", "pd" ...), None if absent; of other kinds, what PaddleNLP or
        transformers write for the same weights: "np" for Paddle's files, "pt" for torch's.
    tensors: in storage order (file by file, offset by offset).
    kind: of its files: "safetensors", "pdparams", "bin" or "flex".
    metadata: all that safetensors files say of themselves.
    """

    path: str
    folder: str
    format: str | None
    tensors: dict[str, TensorEntry]
    kind: str = "safetensors"
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        return sum(entry.nbytes for entry in self.tensors.values())
