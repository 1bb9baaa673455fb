"""Name the ways in which rows are made of tokens that no model of a merge has."""

from __future__ import annotations

from ..records import record

METHODS = ("omp", "subword", "mean", "zeros")
PIECES = ("mean", "sum", "weighted_mean", "last")  # how the rows of a token's pieces are combined, for subword
MOST = 1024  # tokens that a token is made of, for omp


@record(frozen=True)
class MissingTokens:
    """How rows are made of tokens that no model has: method, k and pieces as of conversion.vocabulary.missing.Missing."""

    method: str
    k: int = 64
    pieces: str = "mean"
