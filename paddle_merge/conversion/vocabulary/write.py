"""Make the files of the output's tokenizer: those of the source's folder, with the tokens that a union adds."""

from __future__ import annotations

import fnmatch
import json
import os
from collections.abc import Mapping
from typing import Any

from ...checkpoints.json_files import parsed
from ...errors import CheckpointError
from .tokens import MORE_SPECIAL, Vocabulary

# Patterns of the names of a tokenizer's files.
FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.spm",  # Marian's
    "*.tiktoken",  # Qwen's first
    "tekken.json",  # Mistral's
    "bpe.codes",
    "normalizer.json",  # Whisper's
    "chat_template*",
)


def is_tokenizer_file(name: str) -> bool:
    """Return whether a file of this name belongs to a tokenizer."""
    return any(fnmatch.fnmatch(name, pattern) for pattern in FILES)


def with_tokens(files: Mapping[str, bytes], vocabulary: Vocabulary, added: Vocabulary) -> dict[str, bytes]:
    """Return a tokenizer's files with more added tokens, in every file in which a loader looks for them.

    files: content by name, of the tokenizer of `vocabulary`. added: the same vocabulary with more tokens. Raises
    CheckpointError.
    """
    found = dict(files)
    if added.ids == vocabulary.ids and added.added.keys() == vocabulary.added.keys():
        return found
    if "tokenizer.json" in files:
        found["tokenizer.json"] = _of_tokenizers(files["tokenizer.json"], vocabulary, added)
    if "tokenizer_config.json" in files:
        content = _parsed("tokenizer_config.json", files, vocabulary)
        decoder = {str(added.ids[token]): {"content": token, **settings} for token, settings in added.added.items()}
        content = _with_special(content, vocabulary, added)
        found["tokenizer_config.json"] = _json({**content, "added_tokens_decoder": decoder})
    if "special_tokens_map.json" in files:
        content = _parsed("special_tokens_map.json", files, vocabulary)
        found["special_tokens_map.json"] = _json(_with_special(content, vocabulary, added))
    if "added_tokens.json" in files or "tokenizer.json" not in files:
        found["added_tokens.json"] = _json({token: added.ids[token] for token in added.added})
    return found


def _with_special(content: dict[str, Any], vocabulary: Vocabulary, added: Vocabulary) -> dict[str, Any]:
    """Return a config whose list of special tokens has the new ones; PaddleNLP splits text at listed special tokens only."""
    new = [token for token, how in added.added.items() if how.get("special") and token not in vocabulary.ids]
    key = next((key for key in MORE_SPECIAL if isinstance(content.get(key), list)), MORE_SPECIAL[0])
    return {**content, key: [*(content.get(key) or ()), *new]} if new else content


def _of_tokenizers(content: bytes, vocabulary: Vocabulary, added: Vocabulary) -> bytes:
    """Return a tokenizer.json with the new added tokens. Raises CheckpointError if the library gives them other ids."""
    import tokenizers

    parsed = _parsed("tokenizer.json", {"tokenizer.json": content}, vocabulary)
    listed = list(parsed.get("added_tokens") or ())
    known = {one["content"] for one in listed}
    listed += [
        {"id": added.ids[token], "content": token, **settings}
        for token, settings in added.added.items()
        if token not in known
    ]
    made = _json({**parsed, "added_tokens": sorted(listed, key=lambda one: one["id"])})
    ids = tokenizers.Tokenizer.from_str(made.decode()).get_vocab(with_added_tokens=True)
    wrong = [token for token, number in added.ids.items() if ids.get(token) != number]
    if wrong:
        more = f" and {len(wrong) - 1} more" if wrong[1:] else ""
        raise CheckpointError(
            f"{vocabulary.folder}/tokenizer.json: its ids have gaps, so {wrong[0]!r}{more} can't be"
            " added behind them; use tokenizer_source base, or a model's, instead of union"
        )
    return made


def _parsed(name: str, files: Mapping[str, bytes], vocabulary: Vocabulary) -> dict[str, Any]:
    """Return the content of a JSON file; {} if it is no object. Raises CheckpointError."""
    content = parsed(os.path.join(vocabulary.folder, name), files[name])
    return content if isinstance(content, dict) else {}


def _json(content: Any) -> bytes:
    """Return the content of a JSON file, indented by 2, with characters beyond ASCII as they are."""
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
