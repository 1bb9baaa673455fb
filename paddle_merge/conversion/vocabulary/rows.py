"""Decide, token by token, which rows of the inputs become which row of the output.

The rules are mergekit's. If an input doesn't have a token, its row is: that of the only input that has it; of several, the
base's if the base has it, else their mean; zeros if no input has it. A row without a token (padding behind the last id) is
identified by its number; if no input has it, it is the mean of all other rows (Hewitt 2021, "Initializing new word
embeddings for pretrained language models"). A recipe may give the row of a token itself (given.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...checkpoints.config_json import read_config
from ...checkpoints.names import TOKEN_EMBEDDINGS, last_word, layer_of
from ...checkpoints.tensors import Checkpoint, TensorEntry
from ...errors import CheckpointError
from ...records import record
from .entry import AlignedEntry, Pick
from .given import Substitute
from .tokens import Vocabulary


def sizes(checkpoint: Checkpoint) -> tuple[int, int]:
    """Return (rows, width) of a checkpoint's token embedding. Raises CheckpointError if it can't be identified."""
    embeddings = {
        entry.shape
        for name, entry in checkpoint.tensors.items()
        if last_word(name) in TOKEN_EMBEDDINGS and len(entry.shape) == 2 and layer_of(name) is None
    }
    if len(embeddings) > 1:
        stated = read_config(checkpoint.folder).get("vocab_size")
        embeddings = {shape for shape in embeddings if shape[0] == stated}
    if len(embeddings) != 1:
        raise CheckpointError(f"{checkpoint.path}: it isn't known which of its tensors is the token embedding")
    (rows, width), *_ = embeddings
    return rows, width


def keys(vocabulary: Vocabulary, rows: int) -> list[str | int]:
    """Return what identifies each of the first `rows` rows of an embedding: its token, or its number if it has none."""
    found: list[str | int] = list(range(rows))
    for token, row in vocabulary.ids.items():
        if row < rows:
            found[row] = token
    return found


@record(frozen=True)
class Rows:
    """Hold which rows of several inputs become which rows of the output.

    own: (inputs, rows) int64, the row of each input that is the output's row; -1 if the input doesn't have it.
    substitutes: (inputs, rows) int64, the row of each input that one which doesn't have its own takes; -1 for none.
    means: (n,) int64, rows of the output that are the mean of all others.
    nowhere: (n,) int64, rows of tokens that no input has and that aren't given, other than those of `means`: zeros.
    named: (rows,) bool, whether the output's row belongs to a token.
    """

    own: np.ndarray
    substitutes: np.ndarray
    means: np.ndarray
    nowhere: np.ndarray
    named: np.ndarray

    @classmethod
    def of(
        cls,
        inputs: Sequence[Sequence[str | int]],
        output: Sequence[str | int],
        base: int | None,
        given: Sequence[Substitute] = (),
        mean: bool = False,
    ) -> Rows:
        """Match the rows of inputs and output by their keys (see keys()).

        base: the index of the base model among the inputs; None if it isn't one. given: rows that the recipe gives. mean:
        whether also rows of tokens that no input has are the mean of all others, instead of zeros.
        """
        own = np.full((len(inputs), len(output)), -1, np.int64)
        for rows, its in zip(own, inputs, strict=True):
            row_of = {key: row for row, key in enumerate(its)}
            rows[:] = [row_of.get(key, -1) for key in output]
        has = own >= 0
        substitutes = own.copy()
        if base is not None:
            substitutes[:, has[base]] = -1
            substitutes[base] = own[base]
        for one in given:
            substitutes[:, one.at] = -1
            if one.place is not None:
                substitutes[one.place, one.at] = one.row
            if one.force:
                own[:, one.at] = -1
        named, lacking = np.array([isinstance(key, str) for key in output], bool), ~has.any(axis=0)
        said = np.zeros_like(lacking)
        said[[one.at for one in given]] = True
        nowhere = named & lacking & ~said
        means = (~named & lacking) | (nowhere if mean else False)
        return cls(own, substitutes, np.flatnonzero(means), np.flatnonzero(nowhere & ~means), named)

    def moves(self, sizes: Sequence[int]) -> bool:
        """Return whether the rows of any input change. sizes: how many rows each input has."""
        return set(sizes) != {self.own.shape[1]} or bool((self.own != np.arange(self.own.shape[1])).any())

    def aligned(self, place: int, axis: int, entries: Sequence[TensorEntry], numbers: Sequence[int]) -> AlignedEntry | None:
        """Return how the tensor of the input at index `place` is made of rows; None if it stays as it is.

        axis: along which it has an element per token. entries: the tensor in each input. numbers: the numbers of the inputs
        in Recipe.titles.
        """
        entry, (_, rows) = entries[place], self.own.shape
        has = self.own[place] >= 0
        if entry.shape[axis] == rows and (self.own[place] == np.arange(rows)).all():
            return None
        taken = np.where(has, -1, self.substitutes)  # (inputs, rows): the rows of each input that become this one's
        taken[place, has] = self.own[place, has]
        gives = taken >= 0
        of, nth = gives.sum(axis=0), np.cumsum(gives, axis=0) - 1
        picks = []
        for one, (number, source) in enumerate(zip(numbers, entries, strict=True)):
            at = np.flatnonzero(gives[one])
            if at.size:
                picks.append(Pick(number, source, runs_of(at, taken[one][at], of[at], nth[one][at])))
        shape = (*entry.shape[:axis], rows, *entry.shape[axis + 1 :])
        means = np.column_stack([self.means, np.ones_like(self.means)])
        return AlignedEntry(
            name=entry.name,
            dtype=entry.dtype,
            shape=shape,
            axis=axis,
            picks=tuple(picks),
            means=means.astype(np.int64).tobytes(),
        )


def runs_of(at: np.ndarray, row: np.ndarray, of: np.ndarray, nth: np.ndarray) -> bytes:
    """Return the value of entry.Pick.runs: single rows, joined to runs that are as long as possible.

    at: (n,), the rows of the output. row: their rows in the input. of: of how many tensors each is the mean. nth: the place
    of this tensor among those.
    """
    ends = (np.diff(at) != 1) | (np.diff(row) != 1) | (np.diff(of) != 0) | (np.diff(nth) != 0)
    first = np.concatenate([[0], np.flatnonzero(ends) + 1]).astype(np.int64)
    count = np.diff(np.append(first, len(at)))
    return np.column_stack([at[first], row[first], count, of[first], nth[first]]).astype(np.int64).tobytes()
