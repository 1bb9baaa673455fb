"""What config.json and generation_config.json say of tokens, said of the output's."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from typing import Any

from ...checkpoints.json_files import parsed, read_json
from .tokens import Vocabulary, read_vocabulary
from .vocabularies import Tokens

log = logging.getLogger("paddle_merge")
CONFIGS = ("config.json", "generation_config.json")
SIZES = ("vocab_size", "padded_vocab_size")  # the latter is ChatGLM's
SECTIONS = ("text_config", "llm_config", "language_config", "thinker_config")
IDS = ("_token_id", "_token_ids", "_token_index", "suppress_tokens")  # how fields end that hold ids of tokens

WORDS = "bad_words_ids"


def of_vocabulary(files: Mapping[str, bytes], tokens: Tokens, folder: str) -> dict[str, bytes]:
    """The files, by name, that stand in `folder`: config.json with the vocabulary's size; and in both configs the ids of the
    same tokens as before. Of tokens that the vocabulary doesn't have, what the configs beside its own tokenizer say.

    Raises CheckpointError."""
    found = dict(files)
    own = os.path.realpath(folder) == os.path.realpath(tokens.main.folder)
    before = tokens.main if own else read_vocabulary(folder) or tokens.main
    for name in CONFIGS:
        path = os.path.join(folder, name)
        content = parsed(path, files[name]) if name in files else None
        if not isinstance(content, dict):
            continue
        changed = _sized(content, tokens.rows) if name == "config.json" else content
        changed = _Ids(path, before, tokens).of(changed)
        if changed != content:
            found[name] = (json.dumps(changed, indent=2) + "\n").encode()
    return found


def _sized(config: dict[str, Any], rows: int) -> dict[str, Any]:
    """Wherever it says the vocabulary's size: for the whole model, or its language model."""
    changed: dict[str, Any] = {name: rows for name in SIZES if name in config}
    for section in SECTIONS:
        if isinstance(its := config.get(section), dict):
            changed[section] = _sized(its, rows)
    return {**config, **(changed or {SIZES[0]: rows})}


class _Ids:
    """Of one config, at `path`. before: the vocabulary that it speaks of."""

    def __init__(self, path: str, before: Vocabulary, tokens: Tokens):
        self._path, self._after = path, tokens.vocabulary.ids
        self._named = {number: token for token, number in before.ids.items()}
        self._others: Any = {}
        other = os.path.join(tokens.source.folder, os.path.basename(path))
        if os.path.isfile(other):
            self._others = read_json(other)

    def of(self, config: dict[str, Any]) -> dict[str, Any]:
        return {key: self._value(key, value) for key, value in config.items()}

    def _words(self, value: list[Any]) -> list[Any]:
        """Lists of ids; those with a token that the output doesn't have can't come up in it."""
        named = [[self._named.get(number) for number in word] for word in value if isinstance(word, list)]
        return [[self._after[str(token)] for token in word] for word in named if all(token in self._after for token in word)]

    def _value(self, key: str, value: Any) -> Any:
        if isinstance(value, dict):
            return self.of(value)
        if key == WORDS and isinstance(value, list):
            return self._words(value)
        if not key.endswith(IDS):
            return value
        numbers = value if isinstance(value, list) else [value]
        named = [self._named.get(number) if type(number) is int else None for number in numbers]
        if all(token is None for token in named):  # no ids, or of rows without a token
            return value
        if all(token is None or token in self._after for token in named):
            taken = set(self._after.values())  # an id without a token stays, unless it is now one
            pairs = [pair for pair in zip(numbers, named, strict=True) if pair[1] is not None or pair[0] not in taken]
            ids = [number if token is None else self._after[token] for number, token in pairs]
            return ids if isinstance(value, list) else ids[0]
        other = self._others.get(key) if isinstance(self._others, dict) else None
        missing = next(token for token in named if token is not None and token not in self._after)
        log.warning(
            "%s: %s is %r, which the output's tokenizer doesn't have; it becomes %r", self._path, key, missing, other
        )
        return other
