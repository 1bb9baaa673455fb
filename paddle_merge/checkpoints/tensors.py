"""Describe tensors: name, dtype, shape, and where the elements are stored or what they are made of.

A TensorEntry is of one of these classes, each beside the code that makes it:

    StoredEntry    here                             bytes of a file, as a checkpoint holds them
    ScaledEntry    scaled.py                        codes of a quantised checkpoint, and the scales of their blocks
    AdaptedEntry   conversion/lora/entry.py         a stored tensor with the changes that LoRA adapters make to it
    AlignedEntry   conversion/vocabulary/entry.py   rows of several tensors, in the order of one tokenizer
    CompletedEntry conversion/vocabulary/entry.py   the same, with rows that are combinations of others
    ReorderedEntry conversion/moe/entry.py          a tensor with its experts and their neurons in another order
    DrawnEntry     conversion/mixture/entry.py      nothing that is read: a router that is drawn at random or computed
    ExpertEntry    conversion/mixture/entry.py      a matrix with the changes that make it an expert's
    StagedEntry    plan/tensor_plan.py              the result of an earlier merge of the same recipe

run/sources.py has the reader of each.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import field, fields, replace
from functools import cache, cached_property
from typing import Any, Protocol, cast

import numpy as np

from ..dtypes import DType
from ..records import record

MAX_DIMS = 64  # dimensions of a tensor: NumPy 2's limit
MAX_SIZE = 1 << 59  # elements of a tensor, not counting dimensions of size 0: what NumPy and others can address

TEXT_STEP = 1 << 16  # characters between the offsets that Part.text gives
Origin = tuple[str, str]  # the path of an input or adapter, and the name that a tensor has there
_ORIGIN: Any = field(default=("", ""), compare=False, repr=False)


@record(frozen=True)
class Part:
    """Locate a part of a tensor: `shape` elements from index `at` on, stored in `file` from byte `offset` on.

    at, shape, strides: one number per dimension, in elements, for a box of the tensor; or one number each, for a run of its
        elements in row-major order. strides: distances between neighbouring elements in the file.
    origin: the stored tensor that the part belongs to; set in a merge's inputs.
    text: empty, unless the bytes are stored as UTF-8 text (pickle protocol 2), one character per byte; then the offsets in
        `file` of characters 0, TEXT_STEP, 2 * TEXT_STEP ... and of the end.
    nibbles: whether elements are stored as four bits each, the low ones of a byte first, and read as a byte each. `offset`
        then counts nibbles.
    """

    file: str
    offset: int
    at: tuple[int, ...]
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    text: tuple[int, ...] = ()
    origin: Origin = _ORIGIN
    nibbles: bool = False


@cache
def _compared(kind: Any) -> tuple[str, ...]:
    """Return the names of the fields by which instances of a dataclass are compared."""
    return tuple(item.name for item in fields(kind) if item.compare)


@record(frozen=True)
class TensorEntry:  # not an ABC, whose isinstance() takes ten times as long, a million times
    """Describe a tensor of which only headers have been read. Equal entries have the same name and are read from the same
    places."""

    name: str
    dtype: DType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Return the size of all elements in `dtype`, in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def bytes_read(self) -> int:
        """Return how many bytes are read for all elements, if each is read once."""
        return self.nbytes

    def renamed(self, name: str) -> TensorEntry:
        """Return the same elements under another name."""
        return replace(self, name=name)

    @property
    def nameless(self) -> Hashable:
        """Return what is equal for tensors read from the same places, whatever their names, as tied ones are."""
        return type(self), *(getattr(self, name) for name in _compared(cast(Any, type(self))) if name != "name")

    @property
    def made_of(self) -> Sequence[TensorEntry]:
        """Return the entries that are read to make this one; none for a stored tensor."""
        raise NotImplementedError

    def parts_of(self, number: int) -> Sequence[tuple[int, TensorEntry]]:
        """Return the entries whose elements become this one's, each with the number of the input that it is of; none if
        the elements are read from one stored tensor, or from none.

        number: of the input that this entry is of.
        """
        return ()

    @property
    def in_blocks(self) -> Sequence[StoredEntry]:
        """Return the stored tensors that are read block by block; others, such as an adapter's factors, are read whole."""
        return [found for one in self.made_of for found in one.in_blocks]

    @property
    def remarks(self) -> Sequence[str]:
        """Return what a reader does to the entries that this one is made of, for people."""
        return ()

    @property
    def files(self) -> set[str]:
        """Return the paths of all files that are read for the tensor."""
        return files_of([self])

    @property
    def computed(self) -> bool:
        """Return whether a reader gives the elements in the dtype in which they are merged, instead of `dtype`."""
        return False

    @property
    def whole(self) -> bool:
        """Return whether all of the tensor has to be read before any element of it is known."""
        return False

    @property
    def scattered(self) -> bool:
        """Return whether neighbouring elements are apart in the file, as in a transposed matrix."""
        return False

    @property
    def memory(self) -> int:
        """Return the bytes that a reader of the tensor holds in addition to the array that it fills.

        Without what earlier merges of the recipe hold, which depends on their methods: plan/memory_estimate.py adds that.
        """
        return 0


@record(frozen=True)
class StoredEntry(TensorEntry):
    """Describe a tensor that is stored in files, little-endian.

    Without parts it is contiguous in row-major order from byte `offset` of `file` on. With parts, it is stored where they
    say, and file and offset are the first part's. origin: as Part.origin, for a tensor without parts.
    """

    file: str
    offset: int
    parts: tuple[Part, ...] = ()
    origin: Origin = _ORIGIN

    def renamed(self, name: str) -> StoredEntry:
        if name == self.name:
            return self
        return StoredEntry(name, self.dtype, self.shape, self.file, self.offset, self.parts, self.origin)

    @property
    def nameless(self) -> Hashable:
        return StoredEntry, self.dtype, self.shape, self.file, self.offset, self.parts  # asked for more often than any other

    @property
    def made_of(self) -> Sequence[TensorEntry]:
        return ()

    @property
    def in_blocks(self) -> Sequence[StoredEntry]:
        return (self,)

    @property
    def scattered(self) -> bool:
        return bool(self.parts) and self._scattered

    @cached_property
    def _scattered(self) -> bool:
        return any(part.shape and part.shape[-1] > 1 and part.strides[-1] != 1 for part in self.parts)


def width(part: Part, entry: StoredEntry) -> float:
    """Return how many bytes an element of a part takes in the file."""
    return 0.5 if part.nibbles else entry.dtype.itemsize


def stored(entry: TensorEntry) -> StoredEntry:
    """Return the entry itself, as a stored one.

    Raises ValueError if the tensor is made of others: the bytes of any one of them would be a wrong answer.
    """
    if not isinstance(entry, StoredEntry):
        raise ValueError(f"tensor {entry.name!r} is not stored as it is: run.sources.reader reads it")
    return entry


def files_of(entries: Iterable[TensorEntry]) -> set[str]:
    """Return the paths of all files that are read for any of the tensors."""
    found, waiting = set[str](), list(entries)
    for entry in waiting:
        if not isinstance(entry, StoredEntry):
            waiting += entry.made_of
        elif entry.parts:
            found.update([part.file for part in entry.parts])
        else:
            found.add(entry.file)
    return found


def origins(entry: TensorEntry) -> set[Origin]:
    """Return where everything that is read for a tensor was stored."""
    if isinstance(entry, StoredEntry):
        return {part.origin for part in entry.parts} or {entry.origin}
    return {origin for one in entry.made_of for origin in origins(one)}


class ElementReader(Protocol):
    """Read the elements of one tensor. Readers raise WorkError when they are made and when they read.

    dtype: of the elements that `read` gives.
    """

    @property
    def dtype(self) -> DType: ...

    def read(self, start: int, out: np.ndarray) -> None:
        """Fill `out`, of shape (n,) and the raw dtype, with the elements from index `start` on, in row-major order."""


@record(frozen=True)
class Checkpoint:
    """Hold what the headers of one checkpoint say.

    path: as the user gave it.
    folder: where its config and tokenizer files are.
    format: the value of `format` in safetensors metadata ("pt", "np", "pd" ...), None if absent; for other files, the value
        that PaddleNLP or transformers write for such weights: "np" for Paddle's, "pt" for torch's.
    tensors: by name, in storage order (file by file, offset by offset).
    kind: the format of its files: "safetensors", "pdparams", "bin" or "flex".
    metadata: all metadata of safetensors files.
    tokenizer: where the tokenizer is, if not in `folder`: an adapter's that brings tokens. resized: whether an adapter
        changed the number of tokens that the embedding has.
    """

    path: str
    folder: str
    format: str | None
    tensors: Mapping[str, TensorEntry]
    kind: str = "safetensors"
    metadata: Mapping[str, str] = field(default_factory=dict)
    tokenizer: str | None = None
    resized: bool = False

    @property
    def tokens_folder(self) -> str:
        """Return the folder of the tokenizer."""
        return self.tokenizer or self.folder

    @property
    def nbytes(self) -> int:
        """Return the size of all tensors, in bytes."""
        return sum(entry.nbytes for entry in self.tensors.values())
