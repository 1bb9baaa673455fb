"""Exchange messages among the ranks of one merge: the processes that `paddle.distributed.launch` starts, on one machine
or on several.

Rank 0 listens, and every other rank has one connection to it. The system closes the connection when a process dies, and TCP
keepalive when a machine loses power. A message is [kind, content] in JSON, preceded by its length in four bytes:

    hello    from a rank to rank 0: the job's token and the rank's number. A connection that sends anything else is closed
    welcome  rank 0's answer, with the token
    gather   to rank 0: a rank's content; from rank 0: the contents of all ranks
    fail     sentences that say why the job failed. Rank 0 passes them on
    bye      this rank needs nothing more: the end of its connection doesn't mean that it died
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import selectors
import socket
import time
from collections.abc import Sequence
from multiprocessing.connection import wait
from typing import Any

from ..errors import WorkError
from .messages import Peer, packed

CONNECT_SECONDS = 300.0  # until all ranks must be connected
NOTICE_SECONDS = 10.0  # until it is said that this rank waits for others
CLOSE_SECONDS = 5.0  # for the other ranks to read what was sent last
# A training job leaves its launcher's variables to what is started from its shell or its notebook.
_ALONE = "if this command is to merge alone, unset PADDLE_TRAINERS_NUM"

log = logging.getLogger("paddle_merge")


class Ranks:
    """This process as one of the ranks.

    Call connect first; gather and check while working; fail, if this rank fails; and close in any case.
    """

    def __init__(self, number: int, endpoints: Sequence[str]):
        self.number, self.count, self._endpoints = number, len(endpoints), list(endpoints)
        self.failure: list[str] = []  # why the job failed, if it did
        hosts = [_address(endpoint)[0] for endpoint in endpoints]
        self._titles = [f"rank {rank}" + f" ({host})" * (len(set(hosts)) > 1) for rank, host in enumerate(hosts)]
        self._token = hashlib.sha256(",".join(endpoints).encode()).hexdigest()
        self._peers: dict[int, Peer] = {}  # on rank 0 all others, elsewhere rank 0

    @classmethod
    def from_environment(cls) -> Ranks | None:
        """Return the rank that the launcher's environment variables describe; None if this process is alone.

        Raises WorkError where they contradict each other.
        """
        names = ("PADDLE_TRAINERS_NUM", "PADDLE_TRAINER_ID", "PADDLE_TRAINER_ENDPOINTS", "PADDLE_CURRENT_ENDPOINT")
        count, rank, listed, ours = (os.environ.get(name, "").strip() for name in names)
        words = [word.strip() for word in listed.split(",")]
        if count in ("", "1"):
            return None
        if not count.isdecimal() or int(count) == 0:
            raise WorkError(f"{names[0]} must be a number of processes, not {count!r}")
        if not rank.isdecimal() or int(rank) >= int(count):
            raise WorkError(f"{names[1]} must be a number from 0 to {int(count) - 1}, not {rank!r}; {_ALONE}")
        if not len(words) == len(set(words)) == int(count) or not all(map(all, map(_address, words))):
            raise WorkError(f"{names[2]} must hold {count} different endpoints, each host:port, not {listed!r}; {_ALONE}")
        if ours not in ("", words[int(rank)]):
            raise WorkError(f"{names[3]} is {ours!r}, but {names[2]} holds {words[int(rank)]!r} for rank {rank}")
        return cls(int(rank), words)

    def connect(self) -> None:
        """Connect to the other ranks; return when all are connected. Raises WorkError."""
        if self.count > 1:
            (self._reach if self.number else self._meet)()
            self.gather(None)

    def gather(self, content: Any) -> list[Any]:
        """Return what every rank gave, by rank. Every rank must call it equally often; it waits for the last one without
        limit.

        content: anything that JSON can hold; a tuple comes back as a list. Raises WorkError if a rank failed, died or left.
        """
        if self.number:
            self._tell("gather", content)
        while late := [number for number, peer in self._peers.items() if not peer.gathered]:
            if gone := [number for number in late if self._peers[number].left]:
                self._fail([f"{self._titles[number]} left before the others were done" for number in gone])
            self._turn(None)
        contents = [self._peers[number].gathered.popleft() for number in sorted(self._peers)]
        if self.number == 0:
            contents = [[json.loads(json.dumps(content)), *contents]]  # as the other ranks get it
            self._tell("gather", contents[0])
            while any(peer.outgoing for peer in self._peers.values()):
                self._turn(None)
        self.check()
        return list(contents[0])

    def waitables(self) -> list[socket.socket]:
        """Return the sockets that are readable when `check` has something to do, for multiprocessing.connection.wait."""
        return [peer for peer in self._peers.values() if peer.fileno() >= 0]

    def check(self) -> None:
        """Read what has arrived, without waiting. Raises WorkError if a rank failed or died."""
        while self._turn(0):
            pass

    def fail(self, problems: Sequence[str]) -> None:
        """Tell the other ranks why this one failed, unless the job had failed before. It raises nothing."""
        with contextlib.suppress(Exception):
            self._fail([f"{self._titles[self.number]}: {problem}" for problem in problems or ["failed"]])

    def close(self) -> None:
        """Leave the job, and wait up to CLOSE_SECONDS until the connected ranks have read what was sent last."""
        limit = time.monotonic() + CLOSE_SECONDS
        try:
            if not self.failure:
                self._tell("bye", None)
            for peer in self._peers.values():
                peer.leaving = True
                peer.write()
            while self.waitables() and (seconds := limit - time.monotonic()) > 0:
                self._turn(seconds)
        finally:
            for peer in self._peers.values():
                peer.close()

    # --- talking -----------------------------------------------------------------------------------------------------

    def _turn(self, seconds: float | None) -> bool:
        """Wait until something can be read or written, and do that; return whether there was anything. Raises WorkError."""
        if self.failure and not any(peer.leaving for peer in self._peers.values()):
            raise WorkError(self.failure)
        with selectors.PollSelector() as selector:
            for number, peer in self._peers.items():
                if peer.fileno() >= 0:
                    selector.register(peer, selectors.EVENT_READ | selectors.EVENT_WRITE * bool(peer.outgoing), number)
            ready = [key.data for key, _ in selector.select(seconds)]
        problems: list[str] = []
        for number in ready:
            peer = self._peers[number]
            peer.write()
            for kind, content in peer.read():
                if kind == "gather":
                    peer.gathered.append(content)
                elif kind == "fail":
                    problems += content
                peer.left |= kind in ("fail", "bye")
            if peer.fileno() < 0 and not (peer.left or peer.leaving):
                problems.append(f"{self._titles[number]} ended unexpectedly")
        self._fail(problems)
        return bool(ready)

    def _fail(self, sentences: list[str]) -> None:
        if sentences and not self.failure:
            self.failure = sentences
            self._tell("fail", sentences)

    def _tell(self, kind: str, content: Any) -> None:
        header = packed(kind, content)
        for peer in self._peers.values():
            peer.tell(header)

    # --- meeting -----------------------------------------------------------------------------------------------------

    def _meet(self) -> None:
        """Wait for the other ranks, as rank 0. Raises WorkError."""
        notice, limit = (time.monotonic() + seconds for seconds in (NOTICE_SECONDS, CONNECT_SECONDS))
        missing = {packed("hello", [self._token, number]): number for number in range(1, self.count)}
        strangers: dict[socket.socket, bytes] = {}  # with what they have sent so far
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(self._listen())
            while missing:
                seconds = min(notice, limit) - time.monotonic()
                ready = wait([listener, *strangers, *self.waitables()], max(0, seconds))
                late = ", ".join(self._titles[number] for number in missing.values())
                if time.monotonic() >= notice:
                    self._notice(late)
                    notice = math.inf
                if time.monotonic() >= limit:
                    advice = f"check the log there, and that {self._endpoints[0]} can be reached from there; {_ALONE}"
                    self._fail([f"{late} didn't come within {CONNECT_SECONDS:g} seconds; {advice}"])
                self.check()
                for stranger in [one for one in strangers if one in ready]:
                    said = strangers.pop(stranger)
                    with contextlib.suppress(OSError):
                        said += stranger.recv(1 << 10) or b"the end"
                    if said in missing:
                        peer = self._peers[missing.pop(said)] = Peer(stranger)
                        peer.tell(packed("welcome", self._token))
                    elif any(hello.startswith(said) for hello in missing):
                        strangers[stranger] = said
                    else:
                        stranger.close()
                if listener in ready:
                    with contextlib.suppress(OSError):  # it went away again
                        strangers[stack.enter_context(listener.accept()[0])] = b""

    def _listen(self) -> socket.socket:
        host, port = _address(self._endpoints[0])
        for name in (host, "::" if ":" in host else "0.0.0.0"):  # this machine may not know the name that others use for it
            try:
                family, _, _, _, address = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)[0]
                listener = socket.create_server(address[:2], family=family, backlog=128)
                listener.setblocking(False)
                return listener
            except OSError as error:
                reason = os.strerror(error.errno or 0)
                if error.errno == errno.EADDRINUSE:
                    break
        problem = f"can't listen on {self._endpoints[0]} ({reason}); end what uses that port, or launch again"
        raise WorkError(f"{self._titles[0]} {problem}")

    def _reach(self) -> None:
        """Connect to rank 0, which may not listen yet, as any other rank. Raises WorkError."""
        notice, limit = (time.monotonic() + seconds for seconds in (NOTICE_SECONDS, CONNECT_SECONDS))
        welcome, problem = packed("welcome", self._token), "no answer"
        while (seconds := limit - time.monotonic()) > 0:
            if time.monotonic() >= notice:
                self._notice(f"{self._titles[0]} at {self._endpoints[0]} ({problem})")
                notice = math.inf
            try:
                family, _, _, _, address = socket.getaddrinfo(*_address(self._endpoints[0]), type=socket.SOCK_STREAM)[0]
                with socket.socket(family, socket.SOCK_STREAM) as connection:
                    # While nobody listens, a try may connect a port to itself. That must not keep rank 0 off its port.
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    connection.settimeout(seconds)
                    connection.connect(address)
                    connection.sendall(packed("hello", [self._token, self.number]))
                    said = b""
                    while len(said) < len(welcome) and (more := connection.recv(len(welcome) - len(said))):
                        said += more
                    if said == welcome:
                        self._peers[0] = Peer(connection)
                        return
                    problem = "something else answers there"
            except OSError as error:
                problem = error.strerror or "no answer"
            time.sleep(0.1)
        raise WorkError(
            f"{self._titles[self.number]} couldn't reach rank 0 at {self._endpoints[0]} within {CONNECT_SECONDS:g} seconds"
            f" ({problem}); check that it runs and that its machine lets others connect to that port; {_ALONE}"
        )

    def _notice(self, whom: str) -> None:
        """Log for whom this rank waits."""
        log.warning("%s waits for %s, %g seconds at most; %s", self._titles[self.number], whom, CONNECT_SECONDS, _ALONE)


def _address(endpoint: str) -> tuple[str, int]:
    """Return the parts of host:port or [IPv6 address]:port, with "" or 0 for one that is invalid."""
    host, _, port = endpoint.rpartition(":")
    return host.strip("[]"), int(port) if port.isdecimal() and int(port) < 1 << 16 else 0
