"""Models whose vocabularies differ, brought to one: what every tensor of a merge that has a row per token is made of."""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..detect import last_word
from ..errors import CheckpointError
from ..layout import HEAD, turned_in
from ..modules import suggested
from ..names import layer_of
from ..readers import Aligned, Checkpoint, TensorEntry
from ..recipe import Tokenizer
from .rows import WORDS, Rows, keys, sizes
from .tokens import Vocabulary, read_vocabulary, same_files, union

_HEADS = (last_word(HEAD), "head")  # the latter in DeepSeek's layers that predict more than one token
_TOKENS = (last_word(HEAD), "embed_tokens_per_layer")  # what surely has a row per token; the latter is Gemma 3n's
_POSITIONS = re.compile(r"\bwpe\b|pos(ition|_emb|_\b)")  # there may be as many as tokens
MULTIPLE = 128  # at most: what the rows of a padded embedding stay a multiple of


@dataclass(frozen=True)
class Fate:
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
    fates: tuple[Fate, ...]
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
            with contextlib.suppress(CheckpointError, OSError):  # its tokenizer can't be read; it isn't needed, either
                one, other = self.inputs[first], self.inputs[number]
                if same_files(one.folder, other.folder) or not (known := self.read(first)) or not (its := self.read(number)):
                    continue
                named = {row: token for token, row in known.ids.items()}
                differing = [(token, row) for token, row in its.ids.items() if named.get(row, token) != token]
                for token, row in differing[:1]:
                    found.append(
                        f"{len(differing)} tokens are other rows of the embedding in {other.path} than in {one.path} (row"
                        f" {row} is {token!r}, and {named[row]!r}): --tokenizer_source base aligns them token by token"
                    )
        return found


class Aligner:
    """The tensors of one merge, with their rows in the order of its tokenizer. tokens: what that means for each input.

    taken: the numbers of the inputs that the merge is made of. Raises CheckpointError listing every input whose rows aren't
    known.
    """

    def __init__(self, wanted: Tokenizer, taken: Sequence[int], vocabularies: Vocabularies, layout: str | None):
        self._inputs, self._base, self._layout = vocabularies.inputs, wanted.base, layout
        self._made: dict[object, Aligned | None] = {}
        self._rows: dict[tuple[int, ...], Rows] = {}
        main = wanted.base if wanted.base is not None else taken[0]
        owner = main if wanted.source == "union" else vocabularies.called(wanted.source)
        numbers = dict.fromkeys([main, *taken, *([owner] if isinstance(owner, int) else [])])
        problems: list[str] = []

        def each(read: Callable[[int], tuple[int, int] | Vocabulary]) -> dict[int, Any]:
            found = {}
            for number in numbers:
                try:
                    found[number] = read(number)
                except CheckpointError as error:
                    problems.extend(error.problems)
            return found

        self._sizes: dict[int, tuple[int, int]] = each(lambda number: sizes(self._inputs[number]))
        self._known: dict[int, Vocabulary] = {} if problems else each(lambda number: vocabularies.of(number, main))
        if problems:
            raise CheckpointError(list(dict.fromkeys(problems)))
        source = self._known[owner] if isinstance(owner, int) else _elsewhere(owner)
        others = [self._known[number] for number in dict.fromkeys(taken) if number != main]
        vocabulary = union(source, others) if wanted.source == "union" else source
        pieces = [
            token for token in vocabulary.ids if token not in source.ids and not any(token in one.added for one in others)
        ]
        if pieces:
            vocabularies.notes[
                f"{len(pieces)} tokens of other models' own vocabularies, such as {pieces[0]!r}, become added tokens of the"
                " union's tokenizer, which finds them in text before any other: it may split text as no model was trained"
                " on; tokenizer_source base doesn't"
            ] = None
        own = self._sizes[owner][0] if isinstance(owner, int) else 0
        rows = _rows(vocabulary.end, source.end, own, wanted.multiple)
        self._keys = keys(vocabulary, rows)
        title = "union" if wanted.source == "union" else self._inputs[owner].path if isinstance(owner, int) else owner
        held = {number: {key for key in self._keys_of(number) if isinstance(key, str)} for number in dict.fromkeys(taken)}
        somewhere = set[str]().union(*held.values())
        self.tokens = Tokens(
            title,
            source,
            vocabulary,
            self._known[main],
            rows,
            tuple(self._fate(number, tokens) for number, tokens in held.items()),
            tuple(token for token in vocabulary.ids if token not in somewhere),
        )

    def has(self, name: str) -> bool:
        """Whether all inputs that hold the tensor have a row of it per token. Raises CheckpointError."""
        holders = [number for number in self._known if name in self._inputs[number].tensors]
        return bool(holders) and self._axis([self._inputs[number].tensors[name] for number in holders], holders) is not None

    def align(self, entries: Sequence[TensorEntry], numbers: Sequence[int]) -> list[TensorEntry]:
        """What one tensor of the output is made of, an entry for each of the inputs `numbers`: with their rows aligned, or
        as they are, if they have no row per token. Raises CheckpointError."""
        axis, chosen = self._axis(entries, numbers), tuple(numbers)
        if axis is None and last_word(entries[0].name) not in _TOKENS:
            return list(entries)
        if chosen not in self._rows:
            base = chosen.index(self._base) if self._base in chosen else None
            self._rows[chosen] = Rows.of([self._keys_of(number) for number in chosen], self._keys, base)
        if axis is None and self._rows[chosen].moves([self._sizes[number][0] for number in chosen]):
            first, (rows, _) = self._inputs[numbers[0]], self._sizes[numbers[0]]
            raise CheckpointError(
                f"{first.path}: tensor {entries[0].name!r} is {list(entries[0].shape)}, and the embedding has {rows} rows,"
                " so it can't be told which token each of its own is"
            )
        if axis is None or len({(*entry.shape[:axis], *entry.shape[axis + 1 :]) for entry in entries}) > 1:
            return list(entries)
        # A tied lm_head is the very entry that the embedding is, but for its name, and so must become.
        nameless = tuple(replace(entry, name="") for entry in entries)
        found = []
        for place, entry in enumerate(entries):
            key = nameless, chosen, place, axis
            if key not in self._made:
                self._made[key] = self._rows[chosen].aligned(place, axis, entries, chosen)
            found.append(_replaced(entry, self._made[key], self._inputs[chosen[place]].path))
        return found

    def _keys_of(self, number: int) -> list[str | int]:
        return keys(self._known[number], self._sizes[number][0])

    def _fate(self, number: int, own: set[str]) -> Fate:
        """own: the tokens that it has a row for."""
        named = {key for key in self._keys if isinstance(key, str)}
        left = set(self._keys_of(number)) - set(self._keys)
        dropped = tuple(token for token in self._known[number].ids if token in left)
        filled = tuple(key for key in self._keys if isinstance(key, str) and key not in own)
        return Fate(number, len(own & named), filled, dropped, len(left) - len(dropped))

    def _axis(self, entries: Sequence[TensorEntry], numbers: Sequence[int]) -> int | None:
        """Along which axis a tensor has an element per token; None: along none. Raises CheckpointError if that can't be
        told."""
        name = entries[0].name
        if last_word(name) not in (*WORDS, *_HEADS) and not _may_hold_tokens(name):
            return None
        shapes = [self._sizes[number] for number in numbers]
        fitting = [
            axis
            for axis in range(min(2, *(len(entry.shape) for entry in entries)))
            if all(entry.shape[axis] == rows for entry, (rows, _) in zip(entries, shapes, strict=True))
        ]
        if last_word(name) in WORDS and 0 in fitting:
            return 0
        if len(fitting) < 2 and all(rows != width for rows, width in shapes):
            return fitting[0] if fitting else None
        if last_word(name) not in _HEADS or not fitting:
            return None
        if len(fitting) == 1:
            return fitting[0]
        first = self._inputs[numbers[0]]
        if self._layout is None:
            raise CheckpointError(
                f"{first.path}: tensor {name!r} is square, so it can't be told which of its sides is tokens; say how it is"
                " stored with --layout"
            )
        return int(name in turned_in(first.tensors, self._layout))


def _may_hold_tokens(name: str) -> bool:
    """Whether a side as long as the vocabulary means tokens: not in layers, nor of positions, nor of images."""
    return layer_of(name) is None and not _POSITIONS.search(name) and suggested([name]) == suggested([HEAD])


def _elsewhere(folder: str) -> Vocabulary:
    """Raises CheckpointError."""
    found = read_vocabulary(folder)
    if found is None:
        raise CheckpointError(
            f"tokenizer_source {folder}: no tokenizer is there, and none of the models is called so; give union, base, a"
            " model as it is called in the merge, or the folder of a tokenizer"
        )
    return found


def _rows(end: int, source: int, own: int, multiple: int | None) -> int:
    """How many the output's embedding has. end: of its ids; source: of the ids that it begins with; own: the rows of the
    embedding that these belong to, whose padding is kept."""
    if multiple is None and end <= own:
        return own
    if multiple is None:
        multiple = math.gcd(own, MULTIPLE) if own > source else 1
    return -(-end // multiple) * multiple


def _replaced(entry: TensorEntry, aligned: Aligned | None, path: str) -> TensorEntry:
    if aligned is None:
        return entry
    nbytes = math.prod(aligned.shape) * entry.dtype.itemsize
    return TensorEntry(entry.name, entry.dtype, aligned.shape, path, 0, nbytes, aligned=aligned)
