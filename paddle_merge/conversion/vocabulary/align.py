"""Align the inputs of a merge to one vocabulary: decide which tensors have a row per token, and what these are made of."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from ...checkpoints.config_json import is_tied, read_config
from ...checkpoints.names import HEAD, TOKEN_EMBEDDINGS, last_word, layer_of
from ...checkpoints.tensors import TensorEntry
from ...errors import CheckpointError
from ..layout import transposed_in
from ..modules import suggested
from .entry import AlignedEntry, CompletedEntry
from .given import Given, Substitute, located
from .missing import Missing, Pieces, completed
from .rows import Rows, keys, sizes
from .texts import in_words_of
from .tokens import Vocabulary, extended, read_vocabulary, union
from .vocabularies import Tokens, Vocabularies, VocabularyAlignment

_HEADS = (last_word(HEAD), "head")  # the latter is in DeepSeek's layers for multi-token prediction
_TOKENS = (last_word(HEAD), "embed_tokens_per_layer")  # always have a row per token; the latter is Gemma 3n's
_POSITIONS = re.compile(r"\bwpe\b|pos(ition|_emb|_\b)")  # position embeddings, which may have as many rows as tokens
MULTIPLE = 128  # if an embedding is padded to a multiple of up to this number, the output's is, too


class Aligner:
    """Give the tensors of one merge the rows of the output's vocabulary. tokens: that vocabulary, and its effect on inputs.

    source: "union", the number of an input (its vocabulary), or the folder of a tokenizer. base: the number of the base
    model, None if there is none. multiple: to pad the rows to a multiple of; None for the source's padding.
    taken: the numbers of the inputs that are merged. vocabularies: of the recipe's inputs. layout: that of the inputs, None
    if unknown. given: the rows of tokens that the recipe gives. missing: of what the rows of tokens are made that no input
    has; tokens are then the same if they stand for the same text. None: zeros; and tokens are matched by their names.

    Raises CheckpointError listing every input whose vocabulary or embedding isn't known.
    """

    def __init__(
        self,
        source: int | str,
        base: int | None,
        multiple: int | None,
        taken: Sequence[int],
        vocabularies: Vocabularies,
        layout: str | None,
        given: Sequence[Given] = (),
        missing: Missing | None = None,
    ):
        self._given, self._missing, self._notes = given, missing, vocabularies.notes
        self._pieces: dict[int, Pieces] = {}
        self._inputs, self._base, self._layout = vocabularies.inputs, base, layout
        self._made: dict[object, AlignedEntry | CompletedEntry | None] = {}
        self._rows: dict[tuple[int, ...], Rows] = {}
        main = base if base is not None else taken[0]
        owner = main if source == "union" else vocabularies.input_number(source)
        numbers = dict.fromkeys([main, *taken, *([owner] if isinstance(owner, int) else [])])
        problems: list[str] = []

        def each(read: Callable[[int], tuple[int, int] | Vocabulary]) -> dict[int, Any]:
            """Call `read` for every input, and collect its errors."""
            found = {}
            for number in numbers:
                try:
                    found[number] = read(number)
                except CheckpointError as error:
                    problems.extend(error.problems)
            return found

        self._sizes: dict[int, tuple[int, int]] = each(lambda number: sizes(self._inputs[number]))
        self._known: dict[int, Vocabulary] = {} if problems else each(lambda number: vocabularies.of(number, main))
        heights = {number: rows for number, (rows, _) in self._sizes.items()}
        self._located, lacking = (
            located(given, self._inputs, taken, self._known, heights) if not problems else ({}, problems)
        )
        if lacking:
            raise CheckpointError(list(dict.fromkeys(lacking)))
        first = self._known[owner] if isinstance(owner, int) else _elsewhere(owner)
        self._stored = dict(self._known)
        if missing is not None:
            self._known = {number: one if one is first else in_words_of(one, first) for number, one in self._known.items()}
        # A token behind the rows of its own model's embedding is none that the model knows: mergekit drops it, too.
        others = [self._known[number].within(self._sizes[number][0]) for number in dict.fromkeys(taken) if number != main]
        beyond = [
            (number, token)
            for number in dict.fromkeys(taken)
            if number != main and source == "union"
            for token, row in self._known[number].ids.items()
            if row >= self._sizes[number][0] and token not in first.ids
        ]
        if beyond:
            path, token = self._inputs[beyond[0][0]].path, beyond[0][1]
            vocabularies.notes[
                f"{len(beyond)} tokens, such as {token!r} of {path}, have no row in their own models' embeddings, and the"
                " union doesn't get them"
            ] = None
        vocabulary = union(first, others) if source == "union" else first
        pieces = [
            token for token in vocabulary.ids if token not in first.ids and not any(token in one.added for one in others)
        ]
        if pieces:
            vocabularies.notes[
                f"{len(pieces)} tokens of other models' own vocabularies, such as {pieces[0]!r}, become added tokens of the"
                " union's tokenizer, which matches added tokens first: it may split text in ways on which no model was"
                " trained; tokenizer_source base avoids that"
            ] = None
        vocabulary = extended(vocabulary, [one.token for one in given])
        own = self._sizes[owner][0] if isinstance(owner, int) else 0
        rows = _rows(vocabulary.end, first.end, own, multiple)
        self._keys = keys(vocabulary, rows)
        title = "union" if source == "union" else self._inputs[owner].path if isinstance(owner, int) else owner
        self._held = {
            number: {key for key in self._keys_of(number) if isinstance(key, str)} for number in dict.fromkeys(taken)
        }
        said = tuple(one.token for one in given if one.says)
        forced = {one.token for one in given if one.force}
        somewhere = set(said).union(*self._held.values())
        self.tokens = Tokens(
            title=title,
            source=first,
            vocabulary=vocabulary,
            main=self._known[main],
            rows=rows,
            alignments=tuple(self._alignment(number, tokens - forced) for number, tokens in self._held.items()),
            nowhere=tuple(token for token in vocabulary.ids if token not in somewhere),
            given=said,
            filled=missing.title if missing is not None else "of zeros",
        )

    def has(self, name: str) -> bool:
        """Return whether the tensor of this name has an element per token in all inputs that have it.

        Raises CheckpointError if that is unknown.
        """
        holders = [number for number in self._known if name in self._inputs[number].tensors]
        return bool(holders) and self._axis([self._inputs[number].tensors[name] for number in holders], holders) is not None

    def align(self, entries: Sequence[TensorEntry], numbers: Sequence[int]) -> list[TensorEntry]:
        """Return the entries of one tensor with their rows aligned; as they are, if they have no row per token.

        entries: the tensor in each of the inputs `numbers`. Raises CheckpointError.
        """
        axis, chosen = self._axis(entries, numbers), tuple(numbers)
        if axis is None and last_word(entries[0].name) not in _TOKENS:
            return list(entries)
        if chosen not in self._rows:
            base = chosen.index(self._base) if self._base in chosen else None
            self._rows[chosen] = Rows.of(
                [self._keys_of(number) for number in chosen],
                self._keys,
                base,
                self._substitutes(entries[0].name, chosen),
                self._missing is not None and self._missing.method == "mean",
            )
        if axis is None and self._rows[chosen].moves([self._sizes[number][0] for number in chosen]):
            first, (rows, _) = self._inputs[numbers[0]], self._sizes[numbers[0]]
            raise CheckpointError(
                f"{first.path}: tensor {entries[0].name!r} is {list(entries[0].shape)}, and the embedding has {rows} rows,"
                " so the tokens of its own rows are unknown"
            )
        if axis is None or len({(*entry.shape[:axis], *entry.shape[axis + 1 :]) for entry in entries}) > 1:
            return list(entries)
        # A tied lm_head is the embedding's entry with another name; both must get equal results.
        nameless = tuple(entry.nameless for entry in entries)
        found = []
        for place, entry in enumerate(entries):
            head = self._missing is not None and self._in_head(entry.name, numbers[place])
            key = nameless, chosen, place, axis, head
            if key not in self._made:
                known = self._rows[chosen].aligned(place, axis, entries, chosen)
                self._made[key] = known and self._complete(known, entry, place, chosen, head)
            made = self._made[key]
            found.append(entry if made is None else made.renamed(entry.name))
        return found

    def _in_head(self, name: str, number: int) -> bool:
        """Return whether a tensor of an input belongs to a head of its own, which isn't tied to the embedding."""
        checkpoint = self._inputs[number]
        return last_word(name) in _HEADS and not is_tied(checkpoint, read_config(checkpoint.folder))

    def _complete(
        self, made: AlignedEntry, entry: TensorEntry, place: int, chosen: tuple[int, ...], head: bool
    ) -> AlignedEntry | CompletedEntry:
        """Return the tensor of the input at index `place` with the rows that no input has. Raises CheckpointError."""
        if self._missing is None:
            return made
        number, pieces = chosen[place], None
        if self._missing.method == "subword":
            if number not in self._pieces:
                self._pieces[number] = Pieces(self._stored[number], self.tokens.vocabulary)
            pieces = self._pieces[number]
        found = completed(made, entry, self._rows[chosen], place, self._missing, pieces, head)
        donor = self._missing.donor
        if found is not made and donor is not None and 2 * self._missing.k > (width := donor.embedding.shape[1]):
            self._notes[
                f"rows of missing tokens are made of up to {self._missing.k} tokens, by the {width} elements of a row in"
                f" {donor.path}: so many fit anything, also what is chance; k should be at most {width // 2}"
            ] = None
        return found

    def _substitutes(self, name: str, chosen: tuple[int, ...]) -> list[Substitute]:
        """Return the rows that the recipe gives in the tensor `name` of the inputs `chosen`. Raises CheckpointError."""
        row_of, found, problems = {key: row for row, key in enumerate(self._keys)}, list[Substitute](), list[str]()
        for one in self._given:
            if not one.says or (not one.force and all(one.token in self._held[number] for number in chosen)):
                continue
            if one.number is not None and one.number not in chosen:
                path = self._inputs[one.number].path
                problems.append(
                    f"{path}: has no tensor {name!r} that is merged here, of which the tokens of the recipe give a row to"
                    f" {one.token!r}"
                )
                continue
            place = None if one.number is None else chosen.index(one.number)
            found.append(Substitute(row_of[one.token], place, self._located.get(one.token, -1), one.force))
        if problems:
            raise CheckpointError(problems)
        return found

    def _keys_of(self, number: int) -> list[str | int]:
        """Return the keys of an input's rows, as rows.keys."""
        return keys(self._known[number], self._sizes[number][0])

    def _alignment(self, number: int, own: set[str]) -> VocabularyAlignment:
        """Return what becomes of an input's tokens. own: the tokens for which it has a row."""
        named = {key for key in self._keys if isinstance(key, str)}
        left = set(self._keys_of(number)) - set(self._keys)
        dropped = tuple(token for token in self._known[number].ids if token in left)
        filled = tuple(key for key in self._keys if isinstance(key, str) and key not in own)
        return VocabularyAlignment(number, len(own & named), filled, dropped, len(left) - len(dropped))

    def _axis(self, entries: Sequence[TensorEntry], numbers: Sequence[int]) -> int | None:
        """Return the axis along which a tensor has an element per token; None if there is no such axis.

        entries: the tensor in each of the inputs `numbers`. Raises CheckpointError if the axis is unknown.
        """
        name = entries[0].name
        if last_word(name) not in (*TOKEN_EMBEDDINGS, *_HEADS) and not _may_hold_tokens(name):
            return None
        if not all(entry.dtype.is_float for entry in entries):  # rows of integers can't be averaged
            return None
        shapes = [self._sizes[number] for number in numbers]
        fitting = [
            axis
            for axis in range(min(2, *(len(entry.shape) for entry in entries)))
            if all(entry.shape[axis] == rows for entry, (rows, _) in zip(entries, shapes, strict=True))
        ]
        if last_word(name) in TOKEN_EMBEDDINGS and 0 in fitting:
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
                f"{first.path}: tensor {name!r} is square, so it isn't known which of its dimensions is tokens; state its"
                " layout with --layout"
            )
        return int(name in transposed_in(first.tensors, self._layout))


def _may_hold_tokens(name: str) -> bool:
    """Return whether a dimension as long as the vocabulary is one of tokens: not in layers, of positions, or of images."""
    return layer_of(name) is None and not _POSITIONS.search(name) and suggested([name]) == suggested([HEAD])


def _elsewhere(folder: str) -> Vocabulary:
    """Return the vocabulary of a folder that is no input. Raises CheckpointError if there is none."""
    found = read_vocabulary(folder)
    if found is None:
        raise CheckpointError(
            f"tokenizer_source {folder}: is neither a model of the merge nor a folder with a tokenizer; give union, base, a"
            " model as the recipe names it, or the folder of a tokenizer"
        )
    return found


def _rows(end: int, source: int, own: int, multiple: int | None) -> int:
    """Return the number of rows of the output's embedding.

    end: its largest id plus one. source: the largest id of the vocabulary that it begins with, plus one. own: the rows of
    the embedding of that vocabulary's model, whose padding is kept; 0 if it is no input. multiple: as of Aligner.
    """
    if multiple is None and end <= own:
        return own
    if multiple is None:
        multiple = math.gcd(own, MULTIPLE) if own > source else 1
    return -(-end // multiple) * multiple
