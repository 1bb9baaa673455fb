"""Rewrite the token ids and the vocabulary's size in config.json and generation_config.json for the output's vocabulary."""

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
SIZES = ("vocab_size", "padded_vocab_size")  # fields with the vocabulary's size; the latter is ChatGLM's
SECTIONS = ("text_config", "llm_config", "language_config", "thinker_config")  # where they may be nested
IDS = ("_token_id", "_token_ids", "_token_index", "suppress_tokens")  # endings of the names of fields with token ids
WORDS = "bad_words_ids"  # the field with lists of token ids


def rewrite_ids(files: Mapping[str, bytes], tokens: Tokens, folder: str) -> dict[str, bytes]:
    """Return a folder's files with both configs rewritten for the output's vocabulary.

    config.json gets the vocabulary's size, and token ids become the ids of the same tokens in the output. A token that the
    output doesn't have is replaced by the value of the same field in the folder of the output's tokenizer, with a warning.
    files: content by name, as in `folder`. tokens: the output's vocabulary. Raises CheckpointError.
    """
    found = dict(files)
    own = os.path.realpath(folder) == os.path.realpath(tokens.main.folder)
    before = tokens.main if own else read_vocabulary(folder) or tokens.main
    for name in CONFIGS:
        path = os.path.join(folder, name)
        content = parsed(path, files[name]) if name in files else None
        if not isinstance(content, dict):
            continue
        changed = sized(content, tokens.rows) if name == "config.json" else content
        changed = _Ids(path, before, tokens).of(changed)
        if changed != content:
            found[name] = (json.dumps(changed, indent=2) + "\n").encode()
    return found


def sized(config: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """Return a config.json with the number of rows in all fields of the vocabulary's size, in vocab_size if it has none."""
    changed: dict[str, Any] = {name: rows for name in SIZES if name in config}
    for section in SECTIONS:
        if isinstance(its := config.get(section), dict):
            changed[section] = sized(its, rows)
    return {**config, **(changed or {SIZES[0]: rows})}


class _Ids:
    """Rewrite the token ids of the config at `path`. before: the vocabulary whose ids it has now."""

    def __init__(self, path: str, before: Vocabulary, tokens: Tokens):
        self._path, self._after = path, tokens.vocabulary.ids
        self._named = {number: token for token, number in before.ids.items()}
        self._others: Any = {}
        other = os.path.join(tokens.source.folder, os.path.basename(path))
        if os.path.isfile(other):
            self._others = read_json(other)

    def of(self, config: dict[str, Any]) -> dict[str, Any]:
        """Return the config, or a section of it, with the output's token ids."""
        return {key: self._value(key, value) for key, value in config.items()}

    def _words(self, value: list[Any]) -> list[Any]:
        """Return lists of ids for the output; those with a token that it doesn't have are left out."""
        named = [[self._named.get(number) for number in word] for word in value if isinstance(word, list)]
        return [[self._after[str(token)] for token in word] for word in named if all(token in self._after for token in word)]

    def _value(self, key: str, value: Any) -> Any:
        """Return the value of one field for the output."""
        if isinstance(value, dict):
            return self.of(value)
        if key == WORDS and isinstance(value, list):
            return self._words(value)
        if not key.endswith(IDS):
            return value
        numbers = value if isinstance(value, list) else [value]
        named = [self._named.get(number) if type(number) is int else None for number in numbers]
        if all(token is None for token in named):  # no ids, or ids of rows without a token
            return value
        if all(token is None or token in self._after for token in named):
            taken = set(self._after.values())  # an id without a token is kept, unless the output has a token with this id
            pairs = [pair for pair in zip(numbers, named, strict=True) if pair[1] is not None or pair[0] not in taken]
            ids = [number if token is None else self._after[token] for number, token in pairs]
            return ids if isinstance(value, list) else ids[0]
        other = self._others.get(key) if isinstance(self._others, dict) else None
        missing = next(token for token in named if token is not None and token not in self._after)
        log.warning(
            "%s: %s is %r, which the output's tokenizer doesn't have; it becomes %r", self._path, key, missing, other
        )
        return other
