"""Make one sentence, without the token, of what a hub's library raises."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ...parsing import without_secrets
from .hubs.hub import Hub

_LONGEST = 600  # characters of what a library says
_AGAIN = "then run the same command again: it doesn't send again {}"
_UNREACHED = re.compile("connect|timeout|timedout|network|offline|remoteprotocol|readerror|writeerror|maxretry|ssl", re.I)


def explain(error: BaseException, hub: Hub, repo: str, token: str | None) -> str:
    """Return a sentence on why talking to a hub failed, with the remedy, without the token and the secrets in addresses."""
    status = next((code for one in _causes(error) if (code := _status(one)) is not None), None)
    unreached = status is None and any(_unreached(one) for one in _causes(error))
    reason = without_secrets(_reason(error, unreached), token)
    again = _AGAIN.format(hub.resumes)
    if status == 401:
        return f"{hub.title} doesn't accept the token ({reason}); {hub.login}"
    if status == 403:
        return (
            f"{hub.title} doesn't let this token write to {repo} ({reason}); use a token that may write, of somebody who may"
            f" write there, or another --repo; {hub.login}"
        )
    if status == 404:
        return f"{hub.title} has no {repo}, or no such branch ({reason}); check --repo, --revision and the token's rights"
    if status == 429 or (status or 0) >= 500:
        return f"{hub.title} can't do it now ({reason}); wait, {again}"
    if unreached:
        return f"{hub.title} can't be reached ({reason}); check the network, {again}"
    return f"{hub.title} doesn't take {repo} ({reason}); see to that, {again}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception, and those that it was raised from or during."""
    one: BaseException | None = error
    seen: set[int] = set()
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)


def _status(error: BaseException) -> int | None:
    """Return the HTTP status that an exception of requests, httpx or a hub's library carries; None if it carries none."""
    for holder in (getattr(error, "response", None), error):
        status = getattr(holder, "status_code", None)
        if isinstance(status, int) and 400 <= status < 600:
            return status
    return None


def _unreached(error: BaseException) -> bool:
    """Return whether an exception says that the server can't be reached, or that the connection broke: HTTP libraries have
    such classes of their own."""
    return isinstance(error, ConnectionError | TimeoutError) or bool(_UNREACHED.search(type(error).__name__))


def _reason(error: BaseException, unreached: bool) -> str:
    """Return as one line what an exception says, and what the first one says from which it came. unreached: only the latter,
    or of it only the system's error, around which HTTP libraries put those of their objects."""
    said = [_said(one) for one in _causes(error)]
    text = said[0] if said[-1] in said[0] else said[-1] if said[0] in said[-1] else f"{said[0]}: {said[-1]}"
    if unreached:
        system = re.search(r"\[Errno -?\d+\] [\w ]+", said[-1])
        text = system[0] if system else said[-1]
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


def _said(error: BaseException) -> str:
    """Return what the server said, if the library keeps that, or else what an exception says; its class if that is nothing.

    All lines: the first may be "Invalid metadata", and the reasons come below it.
    """
    text = getattr(error, "server_message", None) or str(error)
    return " ".join(str(text).split()).rstrip(".") or type(error).__name__
