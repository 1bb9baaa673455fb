"""Fetch models and adapters by their names on a hub, with the download function and the cache of a library.

The libraries are tried in the order of LIBRARIES: those of Paddle first, because whoever has them installed knows a model's
name from them, and they find the weights that were converted to their layout.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextvars import ContextVar

from ..errors import CheckpointError
from .config_json import code_files, module_folders
from .formats.folder import ADAPTER, ADAPTER_CONFIGS, ENDINGS, read_weight_map, single_file_names
from .hub_libraries import ASKERS, Ask, NotFetchedError
from .json_files import read_json

log = logging.getLogger("paddle_merge")
LIBRARIES = tuple(ASKERS)
_NAME = re.compile(r"(\w[\w.-]*(/\w[\w.-]*)?)(@\w[\w./-]*)?", re.ASCII)
# Within each_once: (name, prefix) -> the folder.
_fetched: ContextVar[dict[tuple[str, str], str] | None] = ContextVar("fetched", default=None)
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
    "README.md",  # the model card, from which origins.py reads the licence
    "sentence_bert_config.json",
)


def is_name(path: str) -> bool:
    """Return whether `path` is no existing file or folder, and could be a model's name on a hub: "org/name", "name" or
    "name@revision"."""
    found = _NAME.fullmatch(path)
    return found is not None and not found[1].endswith(ENDINGS) and not os.path.lexists(path)


def installed() -> list[str]:
    """Return which of LIBRARIES are installed; they are not imported."""
    return [library for library in LIBRARIES if library in sys.modules or importlib.util.find_spec(library)]


def fetch(name: str, prefix: str = "model") -> str:
    """Return the folder in a library's cache that holds the model's weights, config and tokenizer; download what is missing.

    prefix: of the weights; see folder.single_file_names. Raises CheckpointError if no library is installed, or none of them
    can fetch the model.
    """
    known = _fetched.get()
    folder = (known or {}).get((name, prefix)) or _from_any(name, prefix)
    if known is not None:
        known[name, prefix] = folder
    return folder


@contextlib.contextmanager
def each_once() -> Iterator[None]:
    """Fetch each name only once meanwhile: a model and the base of an adapter, say, are then surely the same revision."""
    before = _fetched.get()
    token = _fetched.set({} if before is None else before)
    try:
        yield
    finally:
        _fetched.reset(token)


def _from_any(name: str, prefix: str) -> str:
    """Return the folder in which the first library that can fetch the model keeps it. Raises CheckpointError."""
    libraries = installed()
    if not libraries:
        raise CheckpointError(
            f"{name}: no such file or folder; if it is the name of a model on a hub, install one of"
            f" {', '.join(LIBRARIES)}, which download it, or give the path of a local copy"
        )
    reasons, what = [], "an adapter" if prefix == ADAPTER else "a model"
    for library in libraries:
        log.info("%s: no such file or folder; looking for %s with this name using %s", name, what, library)
        try:
            return _fetch(name, library, prefix)
        except NotFetchedError as error:
            reasons.append(f"{library} can't fetch {what} with this name ({error})")
    raise CheckpointError(
        f"{name}: no such file or folder, and {', and '.join(reasons)}; check the name and the network, or give the path of"
        " a local copy"
    )


def _fetch(name: str, library: str, prefix: str) -> str:
    """Return the folder in which `library` keeps the model. Raises NotFetchedError."""
    repository, _, revision = name.partition("@")
    ask = ASKERS[library](repository, revision or None)
    weights = _weights(ask, prefix)
    folders = {os.path.dirname(path) for path in weights}
    if len(folders) > 1:
        raise NotFetchedError(
            f"its files are in several folders, {' and '.join(sorted(folders))}: the model changed during the download"
        )
    (folder,) = folders
    for file in _beside(folder, prefix):
        if os.path.isfile(os.path.join(folder, file)):
            continue
        try:
            path = ask(file)
        except NotFetchedError as error:
            log.warning("%s: only the config and tokenizer files that are in %s already are used (%s)", name, folder, error)
            break
        if path is not None and path != os.path.join(folder, file):
            raise NotFetchedError(f"its files are in several folders, {folder} and {os.path.dirname(path)}")
    return folder


def _beside(folder: str, prefix: str) -> Iterator[str]:
    """Yield the names of the other files of a model or adapter: an adapter's config, _BESIDE, and, once these are there, the
    code that config.json names and the configs of sentence-transformers' modules."""
    yield from ADAPTER_CONFIGS.values() if prefix == ADAPTER else ()
    yield from _BESIDE
    config, modules = (os.path.join(folder, name) for name in ("config.json", "modules.json"))
    yield from code_files(read_json(config)) if os.path.isfile(config) else ()
    for part in module_folders(read_json(modules)) if os.path.isfile(modules) else ():
        yield f"{part}/config.json"


def _weights(ask: Ask, prefix: str) -> list[str]:
    """Fetch the first of folder.single_file_names(prefix) that the model has, as one file or as an index and its shards.

    Returns the files' paths. Raises NotFetchedError.
    """
    refused: NotFetchedError | None = None
    names = single_file_names(prefix)
    for single in names:
        for file in (f"{single}.index.json", single):
            try:
                path = ask(file)
            except NotFetchedError as error:  # without a network: not in the cache, but the next file may be
                refused = refused or error
                continue
            if path is not None and file == single:
                return [path]
            if path is not None:
                return [path, *map(_required(ask), sorted(set(read_weight_map(path).values())))]
    if refused is None and prefix != ADAPTER and any(map(ask, ADAPTER_CONFIGS.values())):
        refused = NotFetchedError("it is a LoRA adapter: write the model it was trained on and a + before its name")
    raise refused or NotFetchedError(f"it finds none of {', '.join(names)}")


def _required(ask: Ask) -> Callable[[str], str]:
    """Return a function that fetches a shard as `ask` does, and raises NotFetchedError if the model doesn't have it."""

    def get(file: str) -> str:
        """Fetch a file of the model and return its path. Raises NotFetchedError."""
        path = ask(file)
        if path is None:
            raise NotFetchedError(f"the model doesn't have {file}, which its index names")
        return path

    return get
