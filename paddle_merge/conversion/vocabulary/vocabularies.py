"""The vocabularies of a recipe's inputs, and the one of its output."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from ...checkpoints.tensors import Checkpoint
from ...errors import CheckpointError
from .rows import sizes
from .tokens import Vocabulary, read_vocabulary, same_files


@dataclass(frozen=True)
class VocabularyAlignment:
    """What becomes of an input's tokens. matched: how many the output has, too; filled: tokens of the output that it has no
    row for; dropped: its tokens that the output doesn't have; unnamed: how many of its rows without a token are dropped."""

    number: int
    matched: int
    filled: tuple[str, ...]
    dropped: tuple[str, ...]
    unnamed: int


@dataclass(frozen=True)
class Tokens:
    """The output's vocabulary. title: "union", or whose it is. source: the one whose files are taken; vocabulary: with what
    a union adds. main: of the base, or the first model. rows: of the output's embedding. nowhere: tokens that no model has
    a row for."""

    title: str
    source: Vocabulary
    vocabulary: Vocabulary
    main: Vocabulary
    rows: int
    fates: tuple[VocabularyAlignment, ...]
    nowhere: tuple[str, ...]


class Vocabularies:
    """Of a recipe's inputs, read when they are first asked for. inputs: as Recipe.titles, so far. notes: sentences for the
    user."""

    def __init__(self, inputs: Sequence[Checkpoint]):
        self.inputs, self.notes = list(inputs), dict[str, None]()
        self._folders = [os.path.realpath(checkpoint.folder) for checkpoint in inputs]
        self._known, self._like, self._aligned = dict[int, Vocabulary | None](), dict[int, int](), set[int]()

    def of(self, number: int, otherwise: int | None = None) -> Vocabulary:
        """otherwise: the input whose vocabulary it is taken to have, if it has no tokenizer, and as many rows. Raises
        CheckpointError."""
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
        """None, if it has no tokenizer. Raises CheckpointError."""
        if number not in self._known:
            like = self._like.get(number)
            self._known[number] = self.read(like) if like is not None else read_vocabulary(self.inputs[number].folder)
        return self._known[number]

    def called(self, source: int | str) -> int | str:
        """The number of the input whose folder it is, whatever path it is called by; else the folder."""
        folder = os.path.realpath(source) if isinstance(source, str) else None
        return self._folders.index(folder) if folder in self._folders else source

    def add(self, made: Checkpoint, like: int, vocabulary: Vocabulary | None) -> None:
        """The output of an earlier merge. like: the number of the input whose folder it has; vocabulary: its own, if its
        rows were aligned."""
        if vocabulary is not None:
            self._known[len(self.inputs)] = vocabulary
            self._aligned.add(len(self.inputs))
        self._like[len(self.inputs)] = like
        self.inputs.append(made)

    def estranged(self, numbers: Sequence[int]) -> list[str]:
        """A sentence on each of these inputs that has other tokens than the tokenizer in its folder."""
        return [
            f"{self.inputs[number].path}: has other tokens than the tokenizer of {self.inputs[self._like[number]].path},"
            " so what is made of it must have a tokenizer_source, too, such as base"
            for number in numbers
            if number in self._aligned
            and (own := self.read(number)) is not None
            and (its := self.read(self._like[number])) is not None
            and own.ids != its.ids
        ]

    def counts(self, tokens: Tokens | None) -> tuple[int, ...]:
        """How many tokens each vocabulary has that was read so far, or made, the output's included."""
        known = [*self._known.values(), *((tokens.source, tokens.vocabulary) if tokens is not None else ())]
        return tuple(len(one.ids) for one in {id(one): one for one in known if one is not None}.values())

    def unlike(self, numbers: Sequence[int]) -> list[str]:
        """A sentence on each of these inputs that has other tokens for some rows than the first of them."""
        first, *others = numbers
        found = []
        for number in others:
            one, other = self.inputs[first], self.inputs[number]
            try:
                if same_files(one.folder, other.folder) or not (known := self.read(first)) or not (its := self.read(number)):
                    continue
                named = {row: token for token, row in known.ids.items()}
                differing = [(token, row) for token, row in its.ids.items() if named.get(row, token) != token]
                for token, row in differing[:1]:
                    found.append(
                        f"{len(differing)} tokens are other rows of the embedding in {other.path} than in {one.path} (row"
                        f" {row} is {token!r}, and {named[row]!r}): --tokenizer_source base aligns them token by token"
                    )
            except (CheckpointError, OSError) as error:
                reason = error.problems[0] if isinstance(error, CheckpointError) else f"{error.filename}: {error.strerror}"
                found.append(
                    f"whether the rows of the embedding are the same tokens in {other.path} as in {one.path} can't be told"
                    f" ({reason})"
                )
        return found
