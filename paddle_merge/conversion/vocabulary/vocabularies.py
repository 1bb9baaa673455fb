"""Hold the vocabularies of a recipe's inputs, read when they are needed, and describe the vocabulary of an output."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ...checkpoints.tensors import Checkpoint
from ...errors import CheckpointError
from ...records import record
from .rows import sizes
from .tokens import Vocabulary, read_vocabulary, same_files

SHOWN = 3  # paths that a sentence lists
_Tokens = tuple[tuple[str, int], ...]  # and their rows


@record(frozen=True)
class VocabularyAlignment:
    """Describe what becomes of an input's tokens.

    number: of the input in Recipe.titles. matched: how many of its tokens the output has. filled: tokens of the output for
    which it has no row. dropped: its tokens that the output doesn't have. unnamed: how many of its rows without a token are
    dropped.
    """

    number: int
    matched: int
    filled: tuple[str, ...]
    dropped: tuple[str, ...]
    unnamed: int


@record(frozen=True)
class Tokens:
    """Describe the output's vocabulary.

    title: "union", or the path of the model or tokenizer whose vocabulary it is. source: the vocabulary whose files are
    copied. vocabulary: the output's, which is the source and what a union or the recipe adds. main: that of the base, or of
    the first model. rows: of the output's embedding. alignments: one per input. nowhere: tokens for which no input has a
    row. given: tokens whose rows the recipe says. filled: what the rows of `nowhere` are.
    """

    title: str
    source: Vocabulary
    vocabulary: Vocabulary
    main: Vocabulary
    rows: int
    alignments: tuple[VocabularyAlignment, ...]
    nowhere: tuple[str, ...]
    given: tuple[str, ...] = ()
    filled: str = "of zeros"


class Vocabularies:
    """Read and keep the vocabularies of a recipe's inputs. Inputs are numbered as in Recipe.titles.

    inputs: the checkpoints so far; add() appends outputs of earlier stages. notes: sentences for the user (the keys).
    """

    def __init__(self, inputs: Sequence[Checkpoint]):
        self.inputs, self.notes = list(inputs), dict[str, None]()
        self._folders = [os.path.realpath(checkpoint.folder) for checkpoint in inputs]
        self._known, self._like, self._aligned = dict[int, Vocabulary | None](), dict[int, int](), set[int]()

    def of(self, number: int, otherwise: int | None = None) -> Vocabulary:
        """Return the vocabulary of an input.

        otherwise: the number of the input whose vocabulary is assumed if this one has no tokenizer and as many rows. Raises
        CheckpointError if the vocabulary is unknown.
        """
        checkpoint, found = self.inputs[number], self.read(number)
        if found is None and otherwise is not None and number != otherwise:
            other = self.inputs[otherwise]
            if sizes(checkpoint)[0] == sizes(other)[0]:
                self.notes[f"{checkpoint.path} has no tokenizer: its tokens are taken to be those of {other.path}"] = None
                found = self.of(otherwise)
        if found is None:
            raise CheckpointError(
                f"{checkpoint.path}: has no tokenizer that says which token each row of its embedding is (tokenizer.json,"
                " vocab.json, vocab.txt or tokenizer.model); put one beside its weights"
            )
        return found

    def read(self, number: int) -> Vocabulary | None:
        """Return the vocabulary of an input; None if it has no tokenizer. Raises CheckpointError."""
        if number not in self._known:
            like = self._like.get(number)
            self._known[number] = self.read(like) if like is not None else read_vocabulary(self.inputs[number].tokens_folder)
        return self._known[number]

    def input_number(self, source: int | str) -> int | str:
        """Return the number of the input whose folder `source` is, by its real path; else `source` itself."""
        folder = os.path.realpath(source) if isinstance(source, str) else None
        return self._folders.index(folder) if folder in self._folders else source

    def add(self, made: Checkpoint, like: int, vocabulary: Vocabulary | None) -> None:
        """Append the output of an earlier stage of the recipe.

        like: the number of the input whose folder it has. vocabulary: the output's own, if its rows were aligned; else None.
        """
        if vocabulary is not None:
            self._known[len(self.inputs)] = vocabulary
            self._aligned.add(len(self.inputs))
        self._like[len(self.inputs)] = like
        self.inputs.append(made)

    def realigned(self, numbers: Sequence[int]) -> list[str]:
        """Return a sentence on each of these inputs whose tokens differ from those of the tokenizer in its folder."""
        return [
            f"{self.inputs[number].path}: has other tokens than the tokenizer of {self.inputs[self._like[number]].path},"
            " so a merge of it needs a tokenizer_source, too, such as base"
            for number in numbers
            if number in self._aligned
            and (own := self.read(number)) is not None
            and (its := self.read(self._like[number])) is not None
            and own.ids != its.ids
        ]

    def counts(self, tokens: Tokens | None) -> tuple[int, ...]:
        """Return the number of tokens of each vocabulary that is in memory. tokens: the output's, if there is one."""
        known = [*self._known.values(), *((tokens.source, tokens.vocabulary) if tokens is not None else ())]
        return tuple(len(one.ids) for one in {id(one): one for one in known if one is not None}.values())

    def mismatched(self, numbers: Sequence[int]) -> list[str]:
        """Return a sentence on each of these inputs in which some rows of the embedding have other tokens than the first, or
        a token where the first has none, or none where it has one."""
        first, *others = numbers
        found = []
        padded: dict[tuple[_Tokens, bool], list[str]] = {}  # paths by tokens, and whether these paths have them or the first
        for number in others:
            one, other = self.inputs[first], self.inputs[number]
            try:
                if (
                    same_files(one.tokens_folder, other.tokens_folder)
                    or not (known := self.read(first))
                    or not (its := self.read(number))
                ):
                    continue
                named = {row: token for token, row in known.ids.items()}
                differing = [(token, row) for token, row in its.ids.items() if named.get(row, token) != token]
                for token, row in differing[:1]:
                    what = "tokens have other rows" if len(differing) > 1 else "token has another row"
                    found.append(
                        f"{len(differing)} {what} of the embedding in {other.path} than in {one.path} (row"
                        f" {row} is {token!r} and {named[row]!r}): --tokenizer_source base aligns them token by token"
                    )
                if not differing:
                    for alone, others_have in ((_unshared(other, its, known), True), (_unshared(one, known, its), False)):
                        padded.setdefault((alone, others_have), []).append(other.path)
            except (CheckpointError, OSError) as error:
                reason = error.problems[0] if isinstance(error, CheckpointError) else f"{error.filename}: {error.strerror}"
                found.append(
                    f"it isn't known whether the rows of the embedding are the same tokens in {other.path} as in {one.path}"
                    f" ({reason})"
                )
        for (alone, others_have), paths in padded.items():
            if alone:
                path = [self.inputs[first].path]
                found.append(_padded(alone, *((paths, path) if others_have else (path, paths))))
        return found


def _unshared(one: Checkpoint, known: Vocabulary, its: Vocabulary) -> _Tokens:
    """Return the tokens of an input that another vocabulary lacks, and whose rows are no token's there. Raises
    CheckpointError."""
    taken = set(its.ids.values())
    alone = [(token, row) for token, row in known.ids.items() if row not in taken and token not in its.ids]
    rows, _ = sizes(one) if alone else (0, 0)  # few embeddings need to be found
    return tuple((token, row) for token, row in alone if row < rows)


def _padded(alone: _Tokens, having: Sequence[str], lacking: Sequence[str]) -> str:
    """Return a sentence on rows of the embedding that are tokens in some inputs, and no token's in others."""
    token, row = alone[0]
    its = "it from models that have the token"
    if len(alone) == 1:
        what = f"row {row} of the embedding is {token!r} in {_some(having)} and no token in {_some(lacking)}"
    else:
        its = "them from models that have the tokens"
        what = (
            f"{len(alone)} rows of the embedding are tokens in {_some(having)} (row {row} is {token!r}) and none in"
            f" {_some(lacking)}"
        )
    return f"{what}, and merged nevertheless: --tokenizer_source union takes {its}"


def _some(paths: Sequence[str]) -> str:
    """Return the first paths, and how many more there are."""
    return ", ".join(paths[:SHOWN]) + (f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else "")
