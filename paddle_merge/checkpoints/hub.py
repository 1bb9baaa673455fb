"""Fetch models by their names on a hub, with the download function and the cache of PaddleNLP or PaddleFormers."""

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
from ..scipy_hiding import show_scipy
from .config_json import code_files, module_folders
from .formats.folder import ENDINGS, read_weight_map, single_file_names
from .json_files import read_json

log = logging.getLogger("paddle_merge")
LIBRARIES = ("paddlenlp", "paddleformers")
_NAME = re.compile(r"(\w[\w.-]*(/\w[\w.-]*)?)(@\w[\w./-]*)?", re.ASCII)
# The other files that are fetched: those that run/output/sidecars.py may copy, by the names that hubs use.
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
    "video_preprocessor_config.json",
    "processor_config.json",
    "tekken.json",
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
)
_PROXIES = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
Ask = Callable[
    [str], "str | None"
]  # fetches a file of the model by its name, returns its path; None if there is no such file


class _NotFetchedError(Exception):
    """Report that a library can't fetch a file or model; the message is the reason."""


def is_name(path: str) -> bool:
    """Return whether `path` is no existing file or folder, and could be a model's name on a hub: "org/name", "name" or
    "name@revision"."""
    found = _NAME.fullmatch(path)
    return found is not None and not found[1].endswith(ENDINGS) and not os.path.lexists(path)


def installed() -> list[str]:
    """Return which of LIBRARIES are installed; they are not imported."""
    return [library for library in LIBRARIES if library in sys.modules or importlib.util.find_spec(library)]


def fetch(name: str) -> str:
    """Return the folder in a library's cache that holds the model's weights, config and tokenizer; download what is missing.

    Raises CheckpointError if no library is installed, or none of them can fetch the model.
    """
    libraries = installed()
    if not libraries:
        raise CheckpointError(
            f"{name}: no such file or folder; if it is the name of a model on a hub, install paddlenlp or paddleformers,"
            " which download it, or give the path of a local copy"
        )
    reasons = []
    for library in libraries:
        log.info("%s: no such file or folder; looking for a model with this name using %s", name, library)
        try:
            return _fetch(name, library)
        except _NotFetchedError as error:
            reasons.append(f"{library} can't fetch a model with this name ({error})")
    raise CheckpointError(
        f"{name}: no such file or folder, and {', and '.join(reasons)}; check the name and the network, or give the path of"
        " a local copy"
    )


def _fetch(name: str, library: str) -> str:
    """Return the folder in which `library` keeps the model. Raises _NotFetchedError."""
    ask = _asker(name, library)
    weights = _weights(ask)
    folders = {os.path.dirname(path) for path in weights}
    if len(folders) > 1:
        raise _NotFetchedError(
            f"its files are in several folders, {' and '.join(sorted(folders))}: the model changed during the download"
        )
    (folder,) = folders
    for file in _beside(folder):
        if os.path.isfile(os.path.join(folder, file)):
            continue
        try:
            path = ask(file)
        except _NotFetchedError as error:
            log.warning("%s: only the config and tokenizer files that are in %s already are used (%s)", name, folder, error)
            break
        if path is not None and path != os.path.join(folder, file):
            raise _NotFetchedError(f"its files are in several folders, {folder} and {os.path.dirname(path)}")
    return folder


def _beside(folder: str) -> Iterator[str]:
    """Yield the names of the other files of a model: _BESIDE, and, once these are there, the code that config.json names and
    the configs of sentence-transformers' modules."""
    yield from _BESIDE
    config, modules = (os.path.join(folder, name) for name in ("config.json", "modules.json"))
    yield from code_files(read_json(config)) if os.path.isfile(config) else ()
    for part in module_folders(read_json(modules)) if os.path.isfile(modules) else ():
        yield f"{part}/config.json"


def _weights(ask: Ask) -> list[str]:
    """Fetch the first of folder.single_file_names("model") that the model has, as one file or as an index and its shards.

    Returns the files' paths. Raises _NotFetchedError.
    """
    refused: _NotFetchedError | None = None
    names = single_file_names("model")
    for single in names:
        for file in (f"{single}.index.json", single):
            try:
                path = ask(file)
            except _NotFetchedError as error:  # without a network: not in the cache, but the next file may be
                refused = refused or error
                continue
            if path is not None and file == single:
                return [path]
            if path is not None:
                return [path, *map(_required(ask), sorted(set(read_weight_map(path).values())))]
    raise refused or _NotFetchedError(f"it finds none of {', '.join(names)}")


def _required(ask: Ask) -> Callable[[str], str]:
    """Return a function that fetches a shard as `ask` does, and raises _NotFetchedError if the model doesn't have it."""

    def get(file: str) -> str:
        """Fetch a file of the model and return its path. Raises _NotFetchedError."""
        path = ask(file)
        if path is None:
            raise _NotFetchedError(f"the model doesn't have {file}, which its index names")
        return path

    return get


def _asker(name: str, library: str) -> Ask:
    """Return a function that fetches files of this model with the library's resolve_file_path.

    Whatever the library raises is raised as _NotFetchedError.
    """
    try:
        with _isolated():
            resolve: Any = importlib.import_module(f"{library}.utils.download").resolve_file_path
    except Exception as error:  # a broken installation raises anything
        raise _NotFetchedError(f"it can't be imported: {_reason(error)}") from None
    # PaddleFormers raises for a file that the model doesn't have, unless force_return asks it to return None.
    options: dict[str, Any] = {"force_return": True} if library == "paddleformers" else {}
    repository, at, revision = name.partition("@")
    options |= {"revision": revision} if at else {}

    def ask(file: str) -> str | None:
        """Fetch a file of the model and return its path; None if there is no such file. Raises _NotFetchedError."""
        try:
            with _isolated():
                path = resolve(repository, file, **options)
        except Exception as error:  # the library's own, huggingface_hub's, and those of several HTTP libraries
            raise _NotFetchedError(f"{file}: {_reason(error)}") from None
        return path if isinstance(path, str) and os.path.isfile(path) else None

    return ask


def _reason(error: Exception) -> str:
    """Return an exception as one short line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


@contextlib.contextmanager
def _isolated() -> Iterator[None]:
    """Undo, on exit, what a library changes in this process, and suppress its log messages and warnings.

    PaddleFormers overwrites http_proxy and https_proxy with HTTP_PROXY and HTTPS_PROXY, which may not be set; within the
    context they are set to the same values.
    """
    show_scipy()  # which a command may hide
    before = {variable: os.environ.get(variable) for variable in _PROXIES}
    for variable in ("http_proxy", "https_proxy"):
        if before[variable]:
            os.environ.setdefault(variable.upper(), str(before[variable]))
    disabled = logging.root.manager.disable
    logging.disable(max(disabled, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        for variable, value in before.items():
            if value is None:
                os.environ.pop(variable, None)
            else:
                os.environ[variable] = value
