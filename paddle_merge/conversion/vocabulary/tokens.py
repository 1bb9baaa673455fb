"""Read the vocabulary of a tokenizer from the files in a checkpoint's folder, and form the union of several."""

from __future__ import annotations

import contextlib
import dataclasses
import filecmp
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import field
from typing import Any

from ...checkpoints.json_files import read_json, read_small
from ...errors import CheckpointError
from ...records import record

MAX_FILE = 1 << 30  # bytes
MAX_IDS = 1 << 22  # far more than any tokenizer has
SENTENCEPIECE = ("tokenizer.model", "sentencepiece.bpe.model", "spiece.model", "spm.model")
# Files whose ids some tokenizers change: those of XLM-R and mBART (the first), T5 and Pegasus (the second).
RENUMBERED = ("sentencepiece.bpe.model", "spiece.model")
# Tokenizers that use the ids of such a file as they are; PaddleNLP saves Llama's under the first name.
AS_STORED = ("llama", "codellama", "code_llama", "gemma", "baichuan", "albert", "xlnet")
SETTINGS = ("single_word", "lstrip", "rstrip", "normalized", "special")  # of an added token, as in tokenizer.json
SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
MORE_SPECIAL = ("additional_special_tokens", "extra_special_tokens")
PLAIN = dict.fromkeys(SETTINGS, False) | {"normalized": True}  # the settings of an added token without any


@record(frozen=True)
class Vocabulary:
    """Hold a tokenizer's vocabulary.

    folder: where its files are. ids: token -> id, in ascending order of ids. added: added tokens (those that the tokenizer
    matches before its own model) -> their SETTINGS. stored: the vocabulary in the files if it is smaller, as for a union;
    else None.
    """

    folder: str
    ids: Mapping[str, int]
    added: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    stored: Vocabulary | None = field(default=None, compare=False)

    @property
    def end(self) -> int:
        """Return the largest id plus one."""
        return max(self.ids.values(), default=-1) + 1

    def within(self, rows: int) -> Vocabulary:
        """Return the vocabulary without the tokens behind the last of so many rows of an embedding."""
        ids = {token: number for token, number in self.ids.items() if number < rows}
        return dataclasses.replace(self, ids=ids, added={token: said for token, said in self.added.items() if token in ids})


def read_vocabulary(folder: str) -> Vocabulary | None:
    """Read the vocabulary of the tokenizer in a folder; None if there is none.

    It is in the first of tokenizer.json, vocab.json, vocab.txt and the SENTENCEPIECE models that exists.
    tokenizer_config.json and added_tokens.json may add tokens. Raises CheckpointError, also if these contradict one another.
    """
    for name, read in [
        ("tokenizer.json", _of_tokenizers),
        ("vocab.json", _of_json),
        ("vocab.txt", _of_text),
        *((name, _of_sentencepiece) for name in SENTENCEPIECE),
    ]:
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            ids, added = read(path)
            break
    else:
        return None
    for file, token, number, settings in _more(folder):
        if ids.setdefault(token, number) != number:
            raise CheckpointError(
                f"{file}: gives the token {token!r} the id {number}, and {path} gives it {ids[token]}; they must agree"
            )
        if token not in added or settings:
            added[token] = {**PLAIN, **settings}
    for token in _special(folder):  # as loaders do, give special tokens without an id the next ids
        if token not in ids:
            ids[token] = max(ids.values(), default=-1) + 1
            added[token] = {**PLAIN, "normalized": False, "special": True}
    if any(number < 0 for number in ids.values()) or len(set(ids.values())) < len(ids):
        raise CheckpointError(f"{folder}: its tokenizer gives two tokens the same id, or one an id below 0")
    for token, number in ids.items():
        if number >= MAX_IDS:
            raise CheckpointError(f"{folder}: its tokenizer gives {token!r} the id {number}, more than {MAX_IDS}")
    return Vocabulary(folder, dict(sorted(ids.items(), key=lambda pair: pair[1])), added)


def same_files(one: str, other: str) -> bool:
    """Return whether the tokenizer files of two folders give the same tokens the same ids, without building vocabularies.

    False doesn't imply that the vocabularies differ. Raises OSError, CheckpointError.
    """
    for name in ("tokenizer.json", "vocab.json", "vocab.txt", *SENTENCEPIECE):
        paths = [os.path.join(folder, name) for folder in (one, other)]
        exist = [os.path.isfile(path) for path in paths]
        if exist[0] != exist[1] or (exist[0] and not _same(*paths)):
            return False
    more = ({(token, number) for _, token, number, _ in _more(folder)} for folder in (one, other))
    return next(more) == next(more)


def _same(one: str, other: str) -> bool:
    """Return whether two files are equal; for tokenizer.json, which library versions format differently, whether ids are."""
    if filecmp.cmp(one, other, shallow=False):
        return True
    if not one.endswith("tokenizer.json"):
        return False
    with contextlib.suppress(ValueError, RecursionError, LookupError, TypeError):
        first, second = (json.loads(read_small(path, MAX_FILE)) for path in (one, other))
        added = [[(token["id"], token["content"]) for token in content["added_tokens"]] for content in (first, second)]
        return bool(first["model"]["vocab"] == second["model"]["vocab"] and added[0] == added[1])
    return False


Found = tuple[dict[str, int], dict[str, dict[str, Any]]]  # token -> id; added token -> its settings


def _of_tokenizers(path: str) -> Found:
    """Read a tokenizer.json. Raises CheckpointError."""
    import tokenizers

    try:
        content = read_small(path, MAX_FILE).decode()
        read = tokenizers.Tokenizer.from_str(content)
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read ({error.strerror})") from None
    except BaseException as error:  # the library raises plain Exceptions, and PanicException, which is not an Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: the tokenizers library can't read it ({reason})") from None
    added = {
        token.content: {name: bool(getattr(token, name)) for name in SETTINGS}
        for token in read.get_added_tokens_decoder().values()
    }
    return read.get_vocab(with_added_tokens=True), added


def _of_json(path: str) -> Found:
    """Read a vocab.json: token -> id. Raises CheckpointError."""
    content = read_json(path)
    if not isinstance(content, dict) or not all(type(number) is int for number in content.values()):
        raise CheckpointError(f"{path}: must be a JSON object with an id for each token")
    return content, {}


def _of_text(path: str) -> Found:
    """Read a vocab.txt: a token per line; its id is the line's number from 0. Raises CheckpointError."""
    try:
        lines = read_small(path, MAX_FILE).decode().split("\n")
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise CheckpointError(f"{path}: is not UTF-8 text") from None
    tokens = [line.rstrip("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]
    ids = {token: number for number, token in enumerate(tokens)}
    if len(ids) < len(tokens):
        raise CheckpointError(f"{path}: holds a token twice")
    return ids, {}


def _of_sentencepiece(path: str) -> Found:
    """Read a sentencepiece model. Raises CheckpointError, also if the model's tokenizer may use other ids than the file."""
    if os.path.basename(path) in RENUMBERED and not _kind(os.path.dirname(path)).startswith(AS_STORED):
        raise CheckpointError(
            f"{path}: tokenizers with a file of this name use other ids than the file has; save the tokenizer with a"
            " tokenizer.json, as transformers' save_pretrained does"
        )
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError:
        raise CheckpointError(f"{path}: needs sentencepiece to be read: pip install sentencepiece") from None
    try:
        model = SentencePieceProcessor(model_file=path)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{path}: sentencepiece can't read it ({' '.join(str(error).split())})") from None
    return {model.id_to_piece(number): number for number in range(model.get_piece_size())}, {}


def _kind(folder: str) -> str:
    """Return the tokenizer's class, else the model's type, in lower case; "" if neither is known. Raises CheckpointError."""
    for name, key in (("tokenizer_config.json", "tokenizer_class"), ("config.json", "model_type")):
        path = os.path.join(folder, name)
        content = read_json(path) if os.path.isfile(path) else {}
        if isinstance(content, dict) and isinstance(kind := content.get(key), str):
            return kind.lower()
    return ""


def _more(folder: str) -> Iterator[tuple[str, str, int, dict[str, Any]]]:
    """Yield (file, token, id, settings) of the added tokens in tokenizer_config.json and added_tokens.json.

    Raises CheckpointError.
    """
    path = os.path.join(folder, "tokenizer_config.json")
    content = read_json(path) if os.path.isfile(path) else {}
    decoder = content.get("added_tokens_decoder") if isinstance(content, dict) else None
    for number, token in decoder.items() if isinstance(decoder, dict) else ():
        if not str(number).isdecimal() or not isinstance(token, dict) or not isinstance(token.get("content"), str):
            raise CheckpointError(f"{path}: its added_tokens_decoder must hold a token for each id")
        yield path, token["content"], int(number), {name: bool(token[name]) for name in SETTINGS if name in token}
    path = os.path.join(folder, "added_tokens.json")
    if os.path.isfile(path):
        for token, number in _of_json(path)[0].items():
            yield path, token, number, {}


def _special(folder: str) -> Iterator[str]:
    """Yield the special tokens that tokenizer_config.json and special_tokens_map.json name. Raises CheckpointError."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = os.path.join(folder, name)
        content = read_json(path) if os.path.isfile(path) else {}
        if not isinstance(content, dict):
            raise CheckpointError(f"{path}: must be a JSON object")
        lists = [content[key] for key in MORE_SPECIAL if isinstance(content.get(key), list)]
        for token in [*map(content.get, SPECIAL), *(one for each in lists for one in each)]:
            word = token.get("content") if isinstance(token, dict) else token
            if isinstance(word, str):
                yield word


def union(base: Vocabulary, others: list[Vocabulary]) -> Vocabulary:
    """Return the union of vocabularies.

    It has the base's tokens with their ids, then the tokens that only others have: first those of the others' own models,
    then their added tokens, each in order of the others. A token that is added in any of them is added in the union, with
    the settings of the first that has it.
    """
    ids, end = dict(base.ids), base.end
    added: dict[str, Mapping[str, Any]] = {}
    for is_added in (False, True):
        for other in others:
            for token in other.ids:
                if (token in other.added) == is_added and token not in ids:
                    ids[token] = end
                    end += 1
    for one in (base, *others):
        added = {**one.added, **added}
    added = {token: added.get(token, PLAIN) for token in ids if token in added or token not in base.ids}
    return Vocabulary(base.folder, ids, added, base.stored or base)


def extended(vocabulary: Vocabulary, tokens: Iterable[str]) -> Vocabulary:
    """Return a vocabulary with the tokens that it lacks as plain added tokens behind its own, in this order."""
    ids, end = dict(vocabulary.ids), vocabulary.end
    new = [token for token in dict.fromkeys(tokens) if token not in ids]
    ids.update({token: end + place for place, token in enumerate(new)})
    added = {**vocabulary.added, **dict.fromkeys(new, PLAIN)}
    return Vocabulary(vocabulary.folder, ids, added, vocabulary.stored or vocabulary) if new else vocabulary
