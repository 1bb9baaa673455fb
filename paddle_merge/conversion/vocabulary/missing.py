"""Decide of what the rows of tokens are made that no input has: of the rows of other tokens, as another model or the input's
own tokenizer says."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Sequence

import numpy as np

from ...checkpoints.tensors import TensorEntry
from ...errors import CheckpointError
from ...records import record
from .entry import AlignedEntry, Combination, CompletedEntry, Pick, Pursuit
from .rows import Rows, runs_of
from .texts import by_text, texts
from .tokens import SENTENCEPIECE, Vocabulary


@record(frozen=True)
class Donor:
    """Hold what is used of a model whose tokenizer others get: its tensors with a row per token, (rows, width).

    head: the embedding, if lm_head is tied to it.
    """

    path: str
    folder: str
    embedding: TensorEntry
    head: TensorEntry


@record(frozen=True)
class Missing:
    """Say how rows are made of tokens that no input has.

    method: "omp" (the tokens that make up the row in `donor` make it up here, at most k of them), "subword" (the tokens
    into which the input's tokenizer splits the text), "mean" (of all rows), or "zeros".
    pieces: how subwords are combined: "mean", "sum", "weighted_mean", where the last of n pieces counts n times (for rows
    of lm_head the first), or "last" (for rows of lm_head the first).
    donor: needed for omp.
    """

    method: str
    k: int = 64
    pieces: str = "mean"
    donor: Donor | None = None

    @property
    def title(self) -> str:
        """What becomes of the rows, in a few words."""
        donor = self.donor.path if self.donor is not None else ""
        return {
            "omp": f"made of at most {self.k} tokens each, as in {donor} (omp)",
            "subword": f"made of the pieces of their text ({self.pieces})",
            "mean": "the mean of the other rows",
        }.get(self.method, "of zeros")


def completed(
    known: AlignedEntry, source: TensorEntry, rows: Rows, place: int, missing: Missing, pieces: Pieces | None, head: bool
) -> AlignedEntry | CompletedEntry:
    """Return an aligned tensor with the rows that no input has.

    source: the tensor of the input at index `place`, whose rows they are made of. pieces: into which its tokenizer splits
    tokens, for subwords. head: whether it belongs to the head, and not to the embedding. Raises CheckpointError.
    """
    at = rows.nowhere
    how: Combination | Pursuit | None = None
    if at.size and pieces is not None:
        how = pieces.combination(at, missing.pieces, head, source.shape[known.axis])
    elif at.size and missing.donor is not None:
        theirs = missing.donor.head if head else missing.donor.embedding
        both = np.flatnonzero((rows.own[place] >= 0) & rows.named)
        both, at = (some[some < theirs.shape[0]] for some in (both, at))
        if at.size and not both.size:
            raise CheckpointError(
                f"{missing.donor.path}: has no token that the models have, so no rows can be made of others (omp)"
            )
        how = Pursuit(_picked(theirs, both), _picked(theirs, at), rows.own[place][both].tobytes(), missing.k)
    if how is None or not at.size:
        return known
    return CompletedEntry(
        name=known.name,
        dtype=known.dtype,
        shape=known.shape,
        axis=known.axis,
        known=known,
        source=source,
        at=at.tobytes(),
        how=how,
    )


def _picked(entry: TensorEntry, rows: np.ndarray) -> AlignedEntry:
    """Return the tensor of these rows of a donor's tensor. rows: (n,) int64, ascending."""
    ones, zeros = np.ones_like(rows), np.zeros_like(rows)
    pick = Pick(-1, entry, runs_of(np.arange(len(rows)), rows, ones, zeros))  # -1: it is no input
    return AlignedEntry(entry.name, entry.dtype, (len(rows), *entry.shape[1:]), 0, (pick,))


class Pieces:
    """Split the tokens of one vocabulary by the tokenizer of another. Raises CheckpointError if it can't be read.

    vocabulary: that of the input. output: that of the tokens to be split.
    """

    def __init__(self, vocabulary: Vocabulary, output: Vocabulary):
        self._own, self._texts = by_text(texts(vocabulary)), texts(output)
        self._ids, self._names = vocabulary.ids, {number: token for token, number in output.ids.items()}
        self._encode = _encoder(vocabulary.folder)

    def combination(self, at: np.ndarray, pieces: str, head: bool, rows: int) -> Combination:
        """Return of which rows the rows `at` are made.

        pieces: as of Missing. head: whether these are lm_head's. rows: how many the input has.
        """
        found = [[row for row in self._split(int(number)) if row < rows] for number in at]
        if pieces == "last":
            found = [its[:1] if head else its[-1:] for its in found]
        shares = [_shares(len(its), pieces, head) for its in found]
        return Combination(
            rows=np.array([row for its in found for row in its], np.int64).tobytes(),
            coefficients=np.array([share for its in shares for share in its], np.float64).tobytes(),
            counts=np.array([len(its) for its in found], np.int64).tobytes(),
        )

    @functools.lru_cache(1 << 20)  # noqa: B019 - for the embedding, and then the head
    def _split(self, number: int) -> tuple[int, ...]:
        """Return the ids, in the input's vocabulary, of the pieces of the token with this number."""
        text = self._texts[self._names[number]]
        if isinstance(text, bytes):
            try:
                text = text.decode()
            except UnicodeDecodeError:  # a part of a letter
                single = [self._own.get(text[place : place + 1]) for place in range(len(text))]
                return tuple(self._ids[token] for token in single if token is not None)
        return tuple(self._encode(text))


def _shares(count: int, pieces: str, head: bool) -> Sequence[float]:
    """Return the coefficients of `count` pieces."""
    if pieces == "sum":
        return [1.0] * count
    weights = [place + 1 if pieces == "weighted_mean" else 1 for place in range(count)]
    return [weight / sum(weights) for weight in (weights[::-1] if head else weights)]


def _encoder(folder: str) -> Callable[[str], Sequence[int]]:
    """Return a function that splits text into the ids of the tokens of a folder's tokenizer. Raises CheckpointError."""
    path = os.path.join(folder, "tokenizer.json")
    if os.path.isfile(path):
        import tokenizers

        read = tokenizers.Tokenizer.from_file(path)
        read.no_truncation()
        read.no_padding()
        return lambda text: read.encode(text, add_special_tokens=False).ids
    path = next((one for name in SENTENCEPIECE if os.path.isfile(one := os.path.join(folder, name))), "")
    with contextlib.suppress(ImportError):
        from sentencepiece import SentencePieceProcessor

        if path:
            return SentencePieceProcessor(model_file=path).encode
    raise CheckpointError(
        f"{folder}: has no tokenizer.json, by which to split tokens (subword); make their rows in another way: omp or mean"
    )
