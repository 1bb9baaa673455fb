"""Match the tokens of tokenizers that spell text differently: "Ġthe", "▁the" and "the" may all stand for " the".

A token is known by the bytes that it stands for. Byte-level tokenizers (GPT-2's and later) write each byte as a letter;
sentencepiece writes a space as "▁" and a byte that it has no letter for as <0x0A>; WordPiece marks what continues a word.
Special tokens are known by their names, and those that differ by their roles (bos_token, eos_token, ...).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ...checkpoints.json_files import read_json
from .tokens import SENTENCEPIECE, SPECIAL, Vocabulary

_BYTE = re.compile("<0x([0-9A-F]{2})>")
_SPACE, _CONTINUED = "▁", "##"
BYTES, SPACES, WORDS, PLAIN = "bytes", "spaces", "words", "plain"  # how a tokenizer spells text


def _letters() -> dict[str, int]:
    """Return the byte of each letter of byte-level tokenizers: printable bytes are themselves, the others follow U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTE_OF = _letters()


def spelling(folder: str) -> str:
    """Return how the tokenizer in a folder spells text: BYTES, SPACES, WORDS or PLAIN. Raises CheckpointError."""
    path = os.path.join(folder, "tokenizer.json")
    if os.path.isfile(path):
        content = read_json(path)
        content = content if isinstance(content, dict) else {}
        parts = [content.get(name) for name in ("normalizer", "pre_tokenizer", "decoder", "model")]
        kinds = {kind for part in parts for kind in _kinds(part)}
        if "ByteLevel" in kinds:
            return BYTES
        if "WordPiece" in kinds:
            return WORDS
        return SPACES if kinds & {"Metaspace", _SPACE} else PLAIN
    if os.path.isfile(os.path.join(folder, "vocab.json")):
        return BYTES
    if os.path.isfile(os.path.join(folder, "vocab.txt")):
        return WORDS
    return SPACES if any(os.path.isfile(os.path.join(folder, name)) for name in SENTENCEPIECE) else PLAIN


def _kinds(part: Any) -> Iterator[str]:
    """Yield the types in a part of a tokenizer.json, and "▁" where it is replaced by something or put in its place."""
    for one in part if isinstance(part, list) else [part]:
        if not isinstance(one, dict):
            continue
        if isinstance(kind := one.get("type"), str):
            yield kind
        pattern = one.get("pattern")
        if _SPACE in (one.get("content"), pattern.get("String") if isinstance(pattern, dict) else None):
            yield _SPACE
        for inner in ("normalizers", "pretokenizers", "decoders"):
            yield from _kinds(one.get(inner))


def text_of(token: str, spelled: str) -> bytes:
    """Return the bytes that a token of a tokenizer's own model stands for. spelled: as of spelling()."""
    if spelled == BYTES and all(letter in _BYTE_OF for letter in token):
        return bytes(_BYTE_OF[letter] for letter in token)
    if spelled == SPACES:
        byte = _BYTE.fullmatch(token)
        return bytes([int(byte[1], 16)]) if byte else token.replace(_SPACE, " ").encode("utf-8", "surrogatepass")
    if spelled == WORDS:
        token = token[len(_CONTINUED) :] if token.startswith(_CONTINUED) else f" {token}"
    return token.encode("utf-8", "surrogatepass")


def texts(vocabulary: Vocabulary) -> dict[str, bytes | str]:
    """Return what each token stands for: bytes; or, for a special token, its name. Raises CheckpointError."""
    spelled, found = spelling(vocabulary.folder), dict[str, bytes | str]()
    for token in vocabulary.ids:
        settings = vocabulary.added.get(token)
        if settings is None:
            found[token] = text_of(token, spelled)
        else:
            found[token] = token if settings.get("special") else token.encode("utf-8", "surrogatepass")
    return found


def in_words_of(vocabulary: Vocabulary, other: Vocabulary) -> Vocabulary:
    """Return a vocabulary with each token called as the other's token that stands for the same; the rest by other names.

    Of several tokens that stand for the same, the first counts that isn't a byte like <0x41>. Raises CheckpointError.
    """
    its, others = texts(vocabulary), texts(other)
    named = by_text(others)
    first = by_text(its)
    new = {token: named[text] for text, token in first.items() if text in named}
    taken, theirs = set(new.values()), roles(other.folder)
    for role, token in roles(vocabulary.folder).items():
        like = theirs.get(role)
        if token in its and token not in new and like in others and like not in taken:
            new[token] = str(like)
            taken.add(str(like))
    names = {token: new.get(token) or _apart(token, other.ids) for token in vocabulary.ids}
    return Vocabulary(
        vocabulary.folder,
        {names[token]: number for token, number in vocabulary.ids.items()},
        {names[token]: settings for token, settings in vocabulary.added.items()},
    )


def by_text(found: Mapping[str, bytes | str]) -> dict[bytes | str, str]:
    """Return the token for each text: the first that isn't a byte like <0x41>, else the first."""
    ordered = sorted(found.items(), key=lambda pair: bool(_BYTE.fullmatch(pair[0])))
    by_text: dict[bytes | str, str] = {}
    for token, text in ordered:
        by_text.setdefault(text, token)
    return by_text


def _apart(token: str, taken: Mapping[str, int]) -> str:
    """Return a name for a token that none of these has."""
    while token in taken:
        token = f"{token}'"
    return token


def roles(folder: str) -> dict[str, str]:
    """Return the special tokens that a tokenizer's files give roles, such as eos_token -> </s>. Raises CheckpointError."""
    found = dict[str, str]()
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = os.path.join(folder, name)
        content = read_json(path) if os.path.isfile(path) else {}
        for role in SPECIAL:
            token = content.get(role) if isinstance(content, dict) else None
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str):
                found.setdefault(role, token)
    return found
