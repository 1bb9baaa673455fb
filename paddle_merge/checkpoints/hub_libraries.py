"""Fetch files of models from hubs: with the download functions and the caches of PaddleNLP, PaddleFormers, huggingface_hub.

Each library is asked in the same way: ASKERS has the function that returns an `Ask` for a model.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from ..parsing import without_secrets
from ..scipy_hiding import show_scipy

Ask = Callable[[str], str | None]  # fetches a file of the model by its name, returns its path; None if it doesn't exist
PROXIES = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")


class NotFetchedError(Exception):
    """Report that a library can't fetch a file or model; the message is the reason."""


def _paddlenlp(repository: str, revision: str | None) -> Ask:
    if revision:  # its addresses on BOS and its cache have none: it would take whatever is newest
        raise NotFetchedError("it can't fetch a revision")
    return _resolving("paddlenlp", repository, {})


def _paddleformers(repository: str, revision: str | None) -> Ask:
    # It raises for a file that the model doesn't have, unless force_return asks it to return None.
    return _resolving("paddleformers", repository, {"force_return": True, **({"revision": revision} if revision else {})})


def _resolving(library: str, repository: str, options: dict[str, Any]) -> Ask:
    """Return a function that fetches files of this model with the library's resolve_file_path.

    Whatever the library raises is raised as NotFetchedError.
    """
    resolve = imported(f"{library}.utils.download").resolve_file_path

    def ask(file: str) -> str | None:
        """Fetch a file of the model and return its path; None if there is no such file. Raises NotFetchedError."""
        try:
            with isolated():
                path = resolve(repository, file, **options)
        except Exception as error:  # the library's own, huggingface_hub's, and those of several HTTP libraries
            raise NotFetchedError(f"{file}: {reason(error)}") from None
        return path if isinstance(path, str) and os.path.isfile(path) else None

    return ask


def _huggingface_hub(repository: str, revision: str | None) -> Ask:
    """Return a function that fetches files of this model with huggingface_hub's hf_hub_download.

    First asks the hub, once, which files there are; if it can't be reached, only the cache is used. Login, cache and
    address are the library's: HF_TOKEN, HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE. Raises NotFetchedError.
    """
    library: Any = imported("huggingface_hub")
    constants, errors = (imported(f"huggingface_hub.{module}") for module in ("constants", "errors"))
    listed: set[str] | None = None
    unreached = ""
    try:
        with isolated():
            api, seconds = library.HfApi(library_name="paddle_merge"), constants.HF_HUB_ETAG_TIMEOUT
            info = api.model_info(repository, revision=revision, timeout=seconds)
            listed = {file.rfilename for file in info.siblings or ()}
    except errors.RevisionNotFoundError:
        raise NotFetchedError(f"the model has no revision {revision}") from None
    except errors.GatedRepoError:
        raise NotFetchedError(_GATED) from None
    except errors.RepositoryNotFoundError:
        raise NotFetchedError(f"there is none, or it is private; {_LOGIN}") from None
    except Exception as error:  # of several HTTP libraries
        unreached = reason(error, library.get_token())

    def ask(file: str) -> str | None:
        """Fetch a file of the model and return its path; None if there is no such file. Raises NotFetchedError."""
        if listed is not None and file not in listed:
            return None
        offline = listed is None
        try:
            with isolated():
                return str(library.hf_hub_download(repository, file, revision=revision, local_files_only=offline))
        except errors.GatedRepoError:
            raise NotFetchedError(_GATED) from None
        except Exception as error:
            raise NotFetchedError(f"{file}: {unreached or reason(error, library.get_token())}") from None

    return ask


_LOGIN = "to log in, run `hf auth login` or set HF_TOKEN"
_GATED = f"its owner has to grant access: ask for it on the model's page; {_LOGIN}"
ASKERS: dict[str, Callable[[str, str | None], Ask]] = {
    "paddlenlp": _paddlenlp,
    "paddleformers": _paddleformers,
    "huggingface_hub": _huggingface_hub,
}


def imported(module: str) -> Any:
    """Return a module of a library. Raises NotFetchedError if it can't be imported."""
    try:
        with isolated():
            return importlib.import_module(module)
    except Exception as error:  # a broken installation raises anything
        raise NotFetchedError(f"it can't be imported: {reason(error)}") from None


def reason(error: Exception, token: str | None = None) -> str:
    """Return an exception as one short line, without the token."""
    return f"{type(error).__name__}: {without_secrets(' '.join(str(error).split()), token)[:200]}"


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """Undo, on exit, what a library changes in this process, and suppress its log messages and warnings.

    PaddleFormers overwrites http_proxy and https_proxy with HTTP_PROXY and HTTPS_PROXY, which may not be set; within the
    context they are set to the same values.
    """
    show_scipy()  # which a command may hide
    before = {variable: os.environ.get(variable) for variable in PROXIES}
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
