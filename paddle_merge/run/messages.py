"""Exchange messages over a connection between two ranks. A message is [kind, content] in JSON, after its length in bytes."""

from __future__ import annotations

import contextlib
import json
import socket
from collections import deque
from collections.abc import Iterator
from typing import Any

from ..errors import WorkError

MESSAGE_BYTES = 1 << 29  # the most that a message may take
TCP = {"TCP_NODELAY": 1, "TCP_KEEPIDLE": 20, "TCP_KEEPALIVE": 20, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 4}


class Peer(socket.socket):
    """The connection to another rank. `write` and `read` do what can be done without waiting."""

    def __init__(self, connection: socket.socket):
        super().__init__(fileno=connection.detach())
        self.outgoing: deque[tuple[memoryview, list[int]]] = deque()  # frames, with how much each `send` took
        self.gathered: deque[Any] = deque()  # contents for gathers to come
        self.left = False  # it said that it needs nothing more
        self.leaving = False  # only what is outgoing is still sent; what arrives is dropped
        self._received = bytearray()
        self.setblocking(False)
        with contextlib.suppress(OSError):  # it ended already
            self.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name in TCP.keys() & vars(socket).keys():
                self.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), TCP[name])

    def tell(self, header: bytes) -> None:
        with contextlib.suppress(OSError, AttributeError):  # it ended; there is no such option
            # What a sleeping rank leaves unread may stay here for hours; but its machine takes a small frame at once.
            self.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 60_000 if len(header) < 1 << 14 else 0)
        self.outgoing.append((memoryview(header), []))
        self.write()

    def write(self) -> None:
        """Send what can be sent. A KeyboardInterrupt between any two steps neither loses a byte nor sends one twice."""
        try:
            while self.outgoing:
                header, sent = self.outgoing[0]
                if sum(sent) < len(header):
                    sent.extend(map(self.send, [header[sum(sent) :]]))  # one step: `+=` would be two
                else:
                    self.outgoing.popleft()
            if self.leaving:
                self.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            return
        except OSError:
            self.outgoing.clear()  # it ended; what it said last can still be read

    def read(self) -> Iterator[tuple[str, Any]]:
        """Yield the messages that are complete now; close the connection when no more can come."""
        try:
            chunk = self.recv(1 << 20)
            if not self.leaving:
                self._received += chunk
                while len(self._received) >= (end := 4 + int.from_bytes(self._received[:4], "big")):
                    kind, content = json.loads(self._received[4:end])
                    del self._received[:end]
                    yield kind, content
                chunk = chunk if end <= 4 + MESSAGE_BYTES else b""
        except BlockingIOError:
            return
        except (OSError, ValueError, TypeError):
            chunk = b""
        if not chunk:
            self.outgoing.clear()
            self.close()


def packed(kind: str, content: Any) -> bytes:
    """Return a message as it is sent, its length in front. Raises WorkError if it is too long."""
    text = json.dumps([kind, content]).encode()
    if len(text) > MESSAGE_BYTES:
        raise WorkError(f"a message between ranks would take {len(text)} bytes; the limit is {MESSAGE_BYTES}")
    return len(text).to_bytes(4, "big") + text
