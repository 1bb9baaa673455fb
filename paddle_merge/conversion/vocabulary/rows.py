"""Which row of which model becomes which row of the output, token by token.

mergekit's rules for a token that a model doesn't have: its row is that of the one model that has it; of several the base's,
if the base has it; else their mean; zeros, if none has. Rows without a token, as padded embeddings have them behind the last
one, are taken for tokens called by their number, and for the mean of all other rows where no model has them (Hewitt 2021,
"Initializing new word embeddings for pretrained language models").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...checkpoints.config_json import read_config
from ...checkpoints.names import EMBEDDINGS, last_word, layer_of
from ...checkpoints.tensors import Checkpoint, TensorEntry
from ...errors import CheckpointError
from .entry import AlignedEntry, Pick
from .tokens import Vocabulary

WORDS = (*EMBEDDINGS, "embed_in", "tok_embeddings", "shared")  # the last words of embeddings of tokens


def sizes(checkpoint: Checkpoint) -> tuple[int, int]:
    """(rows, width) of its embedding of tokens. Raises CheckpointError."""
    embeddings = {
        entry.shape
        for name, entry in checkpoint.tensors.items()
        if last_word(name) in WORDS and len(entry.shape) == 2 and layer_of(name) is None
    }
    if len(embeddings) > 1:
        told = read_config(checkpoint.folder).get("vocab_size")
        embeddings = {shape for shape in embeddings if shape[0] == told}
    if len(embeddings) != 1:
        raise CheckpointError(f"{checkpoint.path}: it can't be told which of its tensors is the embedding of tokens")
    (rows, width), *_ = embeddings
    return rows, width


def keys(vocabulary: Vocabulary, rows: int) -> list[str | int]:
    """What each of so many rows is called: its token, or its number."""
    found: list[str | int] = list(range(rows))
    for token, row in vocabulary.ids.items():
        if row < rows:
            found[row] = token
    return found


@dataclass(frozen=True)
class Rows:
    """For some inputs: own: (inputs, rows) int64, where each has a row of the output, or -1; donors: (inputs, rows) bool,
    whose rows count where an input has none; means: rows of the output that are the mean of all others."""

    own: np.ndarray
    donors: np.ndarray
    means: np.ndarray

    @classmethod
    def of(cls, inputs: Sequence[Sequence[str | int]], output: Sequence[str | int], base: int | None) -> Rows:
        """From the keys of each input's rows, and of the output's. base: its place among the inputs, if it is one."""
        own = np.full((len(inputs), len(output)), -1, np.int64)
        for line, its in zip(own, inputs, strict=True):
            row_of = {key: row for row, key in enumerate(its)}
            line[:] = [row_of.get(key, -1) for key in output]
        has = own >= 0
        donors = has.copy()
        if base is not None:
            donors[:, has[base]] = False
            donors[base] |= has[base]
        unnamed = np.array([isinstance(key, int) for key in output], bool)
        return cls(own, donors, np.flatnonzero(unnamed & ~has.any(axis=0)))

    def moves(self, sizes: Sequence[int]) -> bool:
        """Whether any input, of so many rows each, doesn't stay as it is."""
        return set(sizes) != {self.own.shape[1]} or bool((self.own != np.arange(self.own.shape[1])).any())

    def aligned(self, place: int, axis: int, entries: Sequence[TensorEntry], numbers: Sequence[int]) -> AlignedEntry | None:
        """The tensor of the input at `place`, whose number is in `numbers`; None: as it is."""
        entry, (_, rows) = entries[place], self.own.shape
        has = self.own[place] >= 0
        if entry.shape[axis] == rows and (self.own[place] == np.arange(rows)).all():
            return None
        gives = np.where(has, False, self.donors)
        gives[place] = has
        of, nth = gives.sum(axis=0), np.cumsum(gives, axis=0) - 1
        picks = []
        for one, (number, source) in enumerate(zip(numbers, entries, strict=True)):
            at = np.flatnonzero(gives[one])
            if at.size:
                picks.append(Pick(number, source, _runs(at, self.own[one][at], of[at], nth[one][at])))
        shape = (*entry.shape[:axis], rows, *entry.shape[axis + 1 :])
        means = np.column_stack([self.means, np.ones_like(self.means)])
        return AlignedEntry(entry.name, entry.dtype, shape, axis, tuple(picks), means.astype(np.int64).tobytes())


def _runs(at: np.ndarray, row: np.ndarray, of: np.ndarray, nth: np.ndarray) -> bytes:
    """Pick.runs, as long as they can be, from what is so of each single row."""
    ends = (np.diff(at) != 1) | (np.diff(row) != 1) | (np.diff(of) != 0) | (np.diff(nth) != 0)
    first = np.concatenate([[0], np.flatnonzero(ends) + 1]).astype(np.int64)
    count = np.diff(np.append(first, len(at)))
    return np.column_stack([at[first], row[first], count, of[first], nth[first]]).astype(np.int64).tobytes()
