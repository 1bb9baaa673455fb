"""Names of models on a hub: fetched by PaddleNLP's or PaddleFormers' own download function, into and from its own cache."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from ..errors import CheckpointError
from .formats.folder import ENDINGS, read_weight_map, singles

log = logging.getLogger("paddle_merge")
LIBRARIES = ("paddlenlp", "paddleformers")
_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
# Beside the weights: what sidecars.py copies, by the names that hubs use.
_BESIDE = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
)
_PROXIES = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
Ask = Callable[[str], "str | None"]  # a file of the model -> where it is now; None if the model has no such file


class _NotFetchedError(Exception):
    """A library failed; the message is its reason."""


def is_name(path: str) -> bool:
    """Whether this is no file or folder here, and could be a model's name on a hub: "org/name" or "name"."""
    return bool(_NAME.fullmatch(path)) and not path.endswith(ENDINGS) and not os.path.lexists(path)


def installed() -> list[str]:
    """The libraries that could fetch a model."""
    return [library for library in LIBRARIES if library in sys.modules or importlib.util.find_spec(library)]


def fetch(name: str) -> str:
    """The folder that holds the model: its weights, config and tokenizer, downloaded unless they are already there.

    Raises CheckpointError: no library is installed that could, or none of them can.
    """
    libraries = installed()
    if not libraries:
        raise CheckpointError(
            f"{name}: no such file or folder; if it is the name of a model on a hub, install paddlenlp or paddleformers,"
            " which download it, or give the path of a local copy"
        )
    reasons = []
    for library in libraries:
        log.info("%s: no such file or folder; looking for a model of this name with %s", name, library)
        try:
            return _fetch(name, library)
        except _NotFetchedError as error:
            reasons.append(f"{library} can't fetch a model of this name ({error})")
    raise CheckpointError(
        f"{name}: no such file or folder, and {', and '.join(reasons)}; check the name and the network, or give the path of"
        " a local copy"
    )


def _fetch(name: str, library: str) -> str:
    """The folder that `library` keeps the model in. Raises _NotFetchedError."""
    ask = _asker(name, library)
    weights = _weights(ask)
    folders = {os.path.dirname(path) for path in weights}
    if len(folders) > 1:
        raise _NotFetchedError(f"its files are in several folders, {' and '.join(sorted(folders))}: it changed meanwhile")
    (folder,) = folders
    for file in _BESIDE:
        if os.path.isfile(os.path.join(folder, file)):
            continue
        try:
            path = ask(file)
        except _NotFetchedError as error:
            log.warning("%s: of its config and tokenizer, only what is in %s is used (%s)", name, folder, error)
            break
        if path is not None and os.path.dirname(path) != folder:
            raise _NotFetchedError(f"its files are in several folders, {folder} and {os.path.dirname(path)}")
    return folder


def _weights(ask: Ask) -> list[str]:
    """Where the first of `singles` is that can be had: in one file, or an index and its shards. Raises _NotFetchedError."""
    refused: _NotFetchedError | None = None
    names = singles("model")
    for single in names:
        for file in (f"{single}.index.json", single):
            try:
                path = ask(file)
            except _NotFetchedError as error:  # without a network, what is not in the cache; but another file may be
                refused = refused or error
                continue
            if path is not None and file == single:
                return [path]
            if path is not None:
                return [path, *map(_surely(ask), sorted(set(read_weight_map(path).values())))]
    raise refused or _NotFetchedError(f"it finds none of {', '.join(names)}")


def _surely(ask: Ask) -> Callable[[str], str]:
    def get(file: str) -> str:
        path = ask(file)
        if path is None:
            raise _NotFetchedError(f"{file}, which the index names, is not there")
        return path

    return get


def _asker(name: str, library: str) -> Ask:
    """The library's resolve_file_path for this model, with its exceptions turned into _NotFetchedError."""
    try:
        with _contained():
            resolve: Any = importlib.import_module(f"{library}.utils.download").resolve_file_path
    except Exception as error:  # a broken installation raises anything
        raise _NotFetchedError(f"it can't be imported: {_reason(error)}") from None
    # PaddleFormers raises for a file that isn't in a folder of its own, unless it is asked to return None.
    options: dict[str, Any] = {"force_return": True} if library == "paddleformers" else {}

    def ask(file: str) -> str | None:
        try:
            with _contained():
                path = resolve(name, file, **options)
        except Exception as error:  # theirs, huggingface_hub's, and those of several HTTP libraries
            raise _NotFetchedError(f"{file}: {_reason(error)}") from None
        return path if isinstance(path, str) and os.path.isfile(path) else None

    return ask


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


@contextlib.contextmanager
def _contained() -> Iterator[None]:
    """What a library is called in: this process stays as it is, and is spared what it tells of every file.

    PaddleFormers overwrites http(s)_proxy with HTTP(S)_PROXY, which may not be set: both say the same meanwhile.
    """
    before = {variable: os.environ.get(variable) for variable in _PROXIES}
    for variable in ("http_proxy", "https_proxy"):
        if before[variable]:
            os.environ.setdefault(variable.upper(), str(before[variable]))
    told = logging.root.manager.disable
    logging.disable(max(told, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(told)
        for variable, value in before.items():
            if value is None:
                os.environ.pop(variable, None)
            else:
                os.environ[variable] = value
