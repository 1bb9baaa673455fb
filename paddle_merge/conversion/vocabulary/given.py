"""Find the rows that a recipe gives to tokens itself (mergekit's table `tokens`) in the embeddings of the inputs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from ...checkpoints.tensors import Checkpoint
from ...records import record
from .tokens import Vocabulary


@record(frozen=True)
class Given:
    """Say which row a token gets in the inputs that lack it; where neither number nor zeros say it, the usual rules do.

    number: the input whose row it is, in Recipe.titles. row: a token of that input, or the number of a row; None: the same
    token. zeros: whether the row is zeros. force: whether inputs that have the token get the row, too.
    """

    token: str
    number: int | None = None
    row: str | int | None = None
    zeros: bool = False
    force: bool = False

    @property
    def says(self) -> bool:
        """Return whether the row is given; else the token is only added to the output."""
        return self.zeros or self.number is not None


@record(frozen=True)
class Substitute:
    """Say which row of an input becomes the row `at` of the output, in the inputs that don't have that row.

    place: the index of the input among those that a tensor is merged of; None: the row is zeros. row: the input's.
    force: as of Given.
    """

    at: int
    place: int | None
    row: int
    force: bool


def located(
    given: Sequence[Given],
    inputs: Sequence[Checkpoint],
    taken: Collection[int],
    known: Mapping[int, Vocabulary],
    rows: Mapping[int, int],
) -> tuple[dict[str, int], list[str]]:
    """Return the number of the row that each token gets of its input, and a sentence on each that there isn't.

    inputs: of the recipe. taken: the numbers of those that are merged. known: their vocabularies. rows: how many rows their
    embeddings have.
    """
    found, problems = dict[str, int](), list[str]()
    for one in given:
        if one.number is None:
            continue
        path, named = inputs[one.number].path, one.token if one.row is None else one.row
        if one.number not in taken:
            problems.append(
                f"{path}: the tokens of the recipe give its row of {named!r} to {one.token!r}, but it isn't merged"
            )
            continue
        row = known[one.number].ids.get(named, -1) if isinstance(named, str) else named
        if not 0 <= row < rows[one.number]:
            what = f"token {named!r} with a row" if isinstance(named, str) else f"row {named} (it has {rows[one.number]})"
            problems.append(f"{path}: has no {what}, which the tokens of the recipe give to {one.token!r}")
        found[one.token] = row
    return found, problems
