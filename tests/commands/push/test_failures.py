"""Test the sentences that are made of what the hubs' libraries raise."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from paddle_merge.commands.push.failures import explain
from paddle_merge.parsing import without_secrets

HUB: Any = SimpleNamespace(title="The Hub", login="log in", resumes="what it has stored")
AGAIN = "then run the same command again: it doesn't send again what it has stored"


class StatusError(Exception):
    """As those of requests and httpx, which have the server's response."""

    def __init__(self, status: int | None, text: str = "no luck"):
        super().__init__(text)
        self.response = SimpleNamespace(status_code=status)


class ConnectTimeout(Exception):  # noqa: N818 - as httpx calls it, whose classes derive from no built-in one
    pass


def wrapped(error: Exception) -> Exception:
    """Return an error that was raised from this one."""
    try:
        raise RuntimeError("Error while uploading 'a'.") from error
    except RuntimeError as other:
        return other


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (StatusError(401), "The Hub doesn't accept the token (no luck); log in"),
        (
            StatusError(403),
            "The Hub doesn't let this token write to me/x (no luck); use a token that may write, of somebody who may write"
            " there, or another --repo; log in",
        ),
        (
            StatusError(404),
            "The Hub has no me/x, or no such branch (no luck); check --repo, --revision and the token's rights",
        ),
        (StatusError(429), f"The Hub can't do it now (no luck); wait, {AGAIN}"),
        (StatusError(502), f"The Hub can't do it now (no luck); wait, {AGAIN}"),
        (
            wrapped(StatusError(403, "quota exceeded")),
            "The Hub doesn't let this token write to me/x (Error while uploading 'a': quota exceeded); use a token that may"
            " write, of somebody who may write there, or another --repo; log in",
        ),
        (wrapped(ConnectTimeout()), f"The Hub can't be reached (ConnectTimeout); check the network, {AGAIN}"),
        (
            ConnectionError("HTTPConnection(<object at 0x7f>): [Errno -2] Name or service not known'))"),
            f"The Hub can't be reached ([Errno -2] Name or service not known); check the network, {AGAIN}",
        ),
        (ValueError("bad name.\n- Details"), f"The Hub doesn't take me/x (bad name. - Details); see to that, {AGAIN}"),
        (StatusError(None, "x" * 1000), f"The Hub doesn't take me/x ({'x' * 600} ...); see to that, {AGAIN}"),
    ],
)
def test_sentences(error: Exception, sentence: str) -> None:
    assert explain(error, HUB, "me/x", None) == sentence


def test_no_secret_is_said() -> None:
    error = StatusError(
        400, "token abc-secret at https://user:pass@host:80/a/b?X-Signature=123&x=1 or https://abc-secret@h/"
    )
    assert explain(error, HUB, "me/x", "abc-secret").startswith(
        "The Hub doesn't take me/x (token <token> at https://host:80/a/b or https://h/); see to that"
    )
    assert without_secrets("see https://h/a?b (or http://h)") == "see https://h/a (or http://h)"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("HTTPS://user:p@ss@host/a", "HTTPS://host/a"),
        ("s3://key:secret@bucket/a?versionId=1", "s3://bucket/a"),
        ("socks5h://me:pw@proxy:1080", "socks5h://proxy:1080"),
        ("/lfs/objects/1?X-Amz-Signature=abc&x=1 failed", "/lfs/objects/1 failed"),
        ("GET /a?Signature=a/b+c= (Caused by x)", "GET /a (Caused by x)"),
        ("is it there? a=1", "is it there? a=1"),
        ("me@host.org wrote to https://host/@a/b", "me@host.org wrote to https://host/@a/b"),
    ],
)
def test_secrets_in_addresses_of_any_kind(text: str, shown: str) -> None:
    assert without_secrets(text) == shown
