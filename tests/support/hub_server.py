"""A server on this machine that speaks the protocol of a hub, as far as the hub's own library needs it for what is tested.

It keeps what it is sent, and records every request. huggingface_server.py, modelscope_server.py and aistudio_server.py
derive from it.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hub-token-that-nobody-may-see-0123456789"


@dataclass
class Repository:
    """private: None if the hub doesn't say. branches: name -> path -> content."""

    private: bool
    branches: dict[str, dict[str, bytes]]
    messages: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Request:
    """A request as it arrived; names of headers are in small letters. sent: the bytes of a large file that it brings."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    body: bytes
    sent: int = 0

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Answer:
    status: int = 200
    content: Any = None  # JSON, unless it is bytes
    headers: Mapping[str, str] = field(default_factory=dict)


class HubServer:
    """A context manager. token: the one that it knows. may_write: whether its owner may write. fails: the status with which
    it answers whatever is asked. stop_after: let this many uploads of large files end, and none of the others."""

    main = "main"

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.stored: dict[str, bytes] = {}  # by SHA-256
        self.requests: list[Request] = []
        self.may_write = True
        self.fails: int | None = None
        self.stop_after: int | None = None
        self.stopped = threading.Event()  # set once an upload is held back
        self._released = threading.Event()
        self._lock = threading.Lock()
        self._routes: list[tuple[str, str, Callable[..., Answer]]] = []
        self.route("PUT", r"/store/(?P<oid>\w+)", self._store)
        self.route("POST", "/verify", lambda request: Answer(200 if request.json["oid"] in self.stored else 404, {}))
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Any:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._released.set()
        self._server.shutdown()
        self._server.server_close()

    def go_on(self) -> None:
        """Forget the uploads that were held back, and hold back none any more."""
        self.stop_after = None
        self._released.set()

    def route(self, method: str, pattern: str, answer: Callable[..., Answer]) -> None:
        """Answer requests whose path matches by answer(request, **groups of the pattern)."""
        self._routes.append((method, pattern, answer))

    def sent(self, method: str = "PUT") -> int:
        """The bytes of large files that arrived so far."""
        return sum(request.sent for request in self.requests if request.method == method)

    def asked(self, method: str, pattern: str) -> list[Request]:
        return [one for one in self.requests if one.method == method and re.search(pattern, one.path)]

    def knows(self, request: Request) -> bool:
        """Return whether the request has the right token."""
        return TOKEN in request.headers.get("authorization", "")

    def answer(self, request: Request) -> Answer:
        with self._lock:
            self.requests.append(request)
        if self.fails is not None:
            return Answer(self.fails, {"error": f"no luck with {request.headers.get('authorization')}"})
        for method, pattern, answer in self._routes:
            if method == request.method and (found := re.fullmatch(pattern, request.path)):
                return answer(
                    request, **{name: unquote(text) for name, text in found.groupdict().items() if text is not None}
                )
        return Answer(404, {"error": f"there is no {request.method} {request.path}"})

    def batch(self, objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Answer the question of Git LFS which of these large files it needs."""
        return [
            {
                **one,
                "actions": {
                    "upload": {"href": f"{self.address}/store/{one['oid']}?signature=SECRET"},
                    "verify": {"href": f"{self.address}/verify"},
                },
            }
            if one["oid"] not in self.stored
            else dict(one)
            for one in objects
        ]

    def _store(self, request: Request, oid: str) -> Answer:
        with self._lock:
            hold = self.stop_after is not None and len(self.stored) >= self.stop_after
            if not hold:
                assert hashlib.sha256(request.body).hexdigest() == oid
                self.stored[oid] = request.body
        if hold:
            self.stopped.set()
            self._released.wait()
        return Answer(200, b"", {"Content-Md5": "-"})


def _handler(server: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _take(self) -> None:
            address = urlsplit(self.path)
            body = self._body()
            stored = address.path.startswith("/store/")
            request = Request(
                method=self.command,
                path=address.path,
                query=parse_qs(address.query),
                headers={name.lower(): value for name, value in self.headers.items()},
                body=body,
                sent=len(body) if stored else 0,
            )
            answer = server.answer(request)
            content = answer.content if isinstance(answer.content, bytes) else json.dumps(answer.content).encode()
            try:
                self.send_response(answer.status)
                for name, value in {"Content-Length": str(len(content)), **answer.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)
            except OSError:  # of a client that was killed
                self.close_connection = True

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                parts = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def log_message(self, format: str, *args: Any) -> None:
            pass

    for method in ("GET", "HEAD", "POST", "PUT"):
        setattr(Handler, f"do_{method}", Handler._take)
    return Handler
