"""Test the communication of ranks: real processes, killed, stopped, interrupted, and disturbed by foreign connections."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from paddle_merge.errors import WorkError
from paddle_merge.run import messages, ranks
from tests.support.sweeps import few

ROOT = Path(__file__).parents[2]
VARIABLES = ("PADDLE_TRAINERS_NUM", "PADDLE_TRAINER_ID", "PADDLE_TRAINER_ENDPOINTS", "PADDLE_CURRENT_ENDPOINT")

# A rank as run.py uses one. What it says goes to standard output: "here", what BODY prints, then "done" or "error: ...".
SCRIPT = """
import faulthandler, os, signal, sys, time
from multiprocessing.connection import wait
from paddle_merge.run import messages, ranks
from paddle_merge.errors import WorkError

def interrupt(*_):
    raise KeyboardInterrupt

def say(*words):
    print(*words, flush=True)

def pause():
    say("paused")
    sys.stdin.readline()

faulthandler.dump_traceback_later(45, exit=True)
for number in (signal.SIGTERM, signal.SIGALRM):
    signal.signal(number, interrupt)
ranks.CONNECT_SECONDS = float(os.environ.get("CONNECT_SECONDS", "30"))
ranks.NOTICE_SECONDS = 60
me = ranks.Ranks.from_environment()
problems = []
try:
    try:
        me.connect()
        say("here")
BODY
        say("done")
    except WorkError as error:
        problems = error.problems
        me.fail(problems)
    except KeyboardInterrupt:
        say("interrupted")
        problems = ["it was interrupted"]
        me.fail(problems)
    finally:
        me.close()
finally:
    for problem in problems:
        say("error:", problem)
sys.exit(1 if problems else 0)
"""
POLL = """
while True:
    wait(me.waitables())
    me.check()
"""
ALONE = "if this command is to merge alone, unset PADDLE_TRAINERS_NUM"


class Job:
    """Ranks 0, 1, ... of one job, started one by one or together; killed at the end of the test."""

    def __init__(self, count: int, host: str = "127.0.0.1"):
        self.count, self.ports = count, free_ports(count)
        self.endpoints = [f"{host}:{port}" for port in self.ports]
        self.processes: dict[int, subprocess.Popen[str]] = {}

    def start(self, body: str, *numbers: int, **variables: str) -> Job:
        script = SCRIPT.replace("BODY", "\n".join("        " + line for line in body.splitlines()))
        for number in numbers or range(self.count):
            values = (str(self.count), str(number), ",".join(self.endpoints), self.endpoints[number])
            environment = {**os.environ, "PYTHONPATH": str(ROOT), **dict(zip(VARIABLES, values, strict=True)), **variables}
            self.processes[number] = subprocess.Popen(
                [sys.executable, "-X", "dev", "-W", "error", "-c", script],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
            )
        return self

    def says(self, *numbers: int) -> list[str]:
        """The next line of each of these ranks, or of all."""
        lines = []
        for number in numbers or self.processes:
            output = self.processes[number].stdout
            assert output
            lines.append(output.readline().rstrip("\n"))
        return lines

    def go(self, *numbers: int) -> None:
        """On from `pause()`."""
        for number in numbers:
            given = self.processes[number].stdin
            assert given
            given.write("\n")
            given.flush()

    def end(self, *numbers: int) -> list[list[str]]:
        """All remaining lines of each of these ranks, or of all. They must end by themselves, without a traceback."""
        said = []
        for number in numbers or self.processes:
            out, err = self.processes[number].communicate(timeout=50)
            assert err == ""
            assert self.processes[number].returncode == (1 if "error: " in out else 0)
            said.append(out.splitlines())
        return said

    def send(self, number: int, what: signal.Signals) -> None:
        self.processes[number].send_signal(what)

    def kill(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.communicate()


def free_ports(count: int) -> list[int]:
    """Below the ports that systems give to outgoing connections."""
    ports: list[int] = []
    while len(ports) < count:
        port = random.SystemRandom().randrange(12000, 32000)
        with socket.socket() as one, contextlib.suppress(OSError):
            one.bind(("", port))
            ports += [port] * (port not in ports)
    return ports


@contextlib.contextmanager
def job(count: int, host: str = "127.0.0.1") -> Iterator[Job]:
    it = Job(count, host)
    try:
        yield it
    finally:
        it.kill()


def call(port: int, what: bytes = b"") -> socket.socket:
    """Connect from outside the job as soon as a rank listens, and send this."""
    limit = time.monotonic() + 30
    while True:
        try:
            connection = socket.create_connection(("127.0.0.1", port), timeout=30)
        except ConnectionRefusedError:
            assert time.monotonic() < limit
            time.sleep(0.01)
        else:
            connection.sendall(what)
            return connection


# --- gather ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", few([3, 2, 8]))
def test_gather_gives_everybody_the_same_in_order(count: int) -> None:
    body = """
for turn in range(150):
    if (me.number + turn) % me.count == 0:
        time.sleep(0.001)
    expected = [{"rank": number, "turn": turn, "text": "é\\udc80" * number} for number in range(me.count)]
    assert me.gather(expected[me.number]) == expected
"""
    with job(count) as ours:
        assert ours.start(body).end() == [["here", "done"]] * count


@pytest.mark.exhaustive
def test_messages_of_megabytes() -> None:
    body = """
for turn in range(3):
    if me.number == turn:
        time.sleep(0.1)
    said = me.gather("abc"[me.number] * (8_000_000 + turn))
    assert said == [letter * (8_000_000 + turn) for letter in "abc"]
"""
    with job(3) as ours:
        assert ours.start(body).end() == [["here", "done"]] * 3


def test_over_ipv6() -> None:
    try:
        with socket.socket(socket.AF_INET6) as one:
            one.bind(("::1", 0))
    except OSError:
        pytest.skip("no IPv6 here")
    with job(2, "[::1]") as ours:
        assert ours.start("say(me.gather((me.number, None)))").end() == [["here", "[[0, None], [1, None]]", "done"]] * 2


def test_what_comes_early_is_kept_and_does_not_keep_wait_awake() -> None:
    early = """
while wait(me.waitables(), 0.5):
    me.check()
say("early:", [list(peer.gathered) for peer in me._peers.values()])
"""
    body = "say(me.gather(me.number), me.gather(me.number + 10))"
    with job(3) as ours:
        ours.start(body, 1, 2).start(early + body, 0)
        first, *others = ours.end(0, 1, 2)
        assert first[1] in ("early: [[1], [2]]", "early: [[2], [1]]")
        assert [first[:1] + first[2:], *others] == [["here", "[0, 1, 2] [10, 11, 12]", "done"]] * 3


def test_a_message_too_large_fails_the_job() -> None:
    """Each rank's is small enough; all together are not."""
    problem = "a message between ranks would take 825 bytes; the limit is 700"
    with job(3) as ours:
        ours.start("messages.MESSAGE_BYTES = 700\nme.gather('x' * (400 if me.number else 1))")
        assert ours.end(0, 1, 2) == [["here", f"error: {problem}"], *[["here", f"error: rank 0: {problem}"]] * 2]


# --- slow, leaving ---------------------------------------------------------------------------------------------------


@pytest.mark.exhaustive
def test_a_stopped_rank_is_only_slow() -> None:
    """It is stopped between its message and the answer, which is larger than the socket's buffer."""
    early = """
while not me._peers[2].gathered:
    wait(me.waitables())
    me.check()
pause()
"""
    body = "me.gather('x' * 8_000_000)\nsay('got it')\nsay(me.gather(me.number))"
    with job(3) as ours:
        ours.start(body, 1, 2).start(early + body, 0)
        assert ours.says(0, 0, 1, 2) == ["here", "paused", "here", "here"]
        ours.send(2, signal.SIGSTOP)
        ours.go(0)
        assert ours.says(1) == ["got it"]
        with pytest.raises(subprocess.TimeoutExpired):
            ours.processes[0].wait(0.3)
        ours.send(2, signal.SIGCONT)
        assert ours.end(0, 1, 2) == [["got it", "[0, 1, 2]", "done"], ["[0, 1, 2]", "done"], ["got it", "[0, 1, 2]", "done"]]


def test_who_leaves_after_the_last_gather_is_not_dead() -> None:
    """Rank 1 leaves, and rank 0 sees it, while rank 0 and rank 2 still have something to do."""
    see = """
while len(me.waitables()) == 2:
    wait(me.waitables())
    me.check()
"""
    with job(3) as ours:
        ours.start("me.gather(0)\nranks.CLOSE_SECONDS = 0.1", 1)
        ours.start("me.gather(0)\npause()\nme.check()", 2).start(f"me.gather(0)\n{see}\npause()\nme.check()", 0)
        assert ours.says(0, 0, 2, 2) == ["here", "paused"] * 2
        assert ours.end(1) == [["here", "done"]]
        ours.go(0, 2)
        assert ours.end(0, 2) == [["done"], ["done"]]


def test_last_words_are_read_after_rank_0_is_gone() -> None:
    early = """
ranks.CLOSE_SECONDS = 0.1
while not all(peer.gathered for peer in me._peers.values()):
    wait(me.waitables())
    me.check()
pause()
"""
    body = "say(sum(map(len, me.gather('x' * 10_000))))"
    with job(3) as ours:
        ours.start(body, 1, 2).start(early + body, 0)
        assert ours.says(0, 0, 1, 2) == ["here", "paused", "here", "here"]
        ours.send(2, signal.SIGSTOP)
        ours.go(0)
        assert ours.end(0, 1) == [["30000", "done"]] * 2
        ours.send(2, signal.SIGCONT)
        assert ours.end(2) == [["30000", "done"]]


@pytest.mark.parametrize("leaver", [0, 1])
def test_who_leaves_too_early_is_missed(leaver: int) -> None:
    others = [number for number in range(3) if number != leaver]
    with job(3) as ours:
        ours.start("pause()", leaver).start("me.gather(0)", *others)
        assert ours.says(leaver, leaver, *others) == ["here", "paused", "here", "here"]
        ours.go(leaver)
        assert ours.end(leaver) == [["done"]]
        assert ours.end(*others) == [[f"error: rank {leaver} left before the others were done"]] * 2


# --- failing, dying --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("waiting", ["me.gather(0)", POLL], ids=["gather", "check"])
@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_failure_is_reported_to_all(failing: int, waiting: str) -> None:
    """Each rank reports it once: no rank forwards the report of another."""
    others = [number for number in range(3) if number != failing]
    with job(3) as ours:
        body = "pause()\nraise WorkError(['the disk is full', 'tensor \\'é\\' is lost'])"
        ours.start(body, failing).start(waiting, *others)
        assert ours.says(failing, failing, *others) == ["here", "paused", "here", "here"]
        ours.go(failing)
        assert ours.end(failing) == [["error: the disk is full", "error: tensor 'é' is lost"]]
        told = [f"error: rank {failing}: the disk is full", f"error: rank {failing}: tensor 'é' is lost"]
        assert ours.end(*others) == [told, told]


@pytest.mark.parametrize("waiting", ["me.gather(0)", POLL], ids=["gather", "check"])
@pytest.mark.parametrize("victim", [0, 2])
def test_a_killed_rank_is_missed_at_once(victim: int, waiting: str) -> None:
    others = [number for number in range(3) if number != victim]
    with job(3) as ours:
        ours.start("pause()", victim).start(waiting, *others)
        assert ours.says(victim, victim, *others) == ["here", "paused", "here", "here"]
        ours.send(victim, signal.SIGKILL)
        started = time.monotonic()
        assert ours.end(*others) == [[f"error: rank {victim} ended unexpectedly"]] * 2
        assert time.monotonic() - started < 4


def test_ranks_that_fail_together_are_all_told_of() -> None:
    body = "ranks.CLOSE_SECONDS = 0.1\npause()\nraise WorkError(f'no {me.number}')"
    with job(4) as ours:
        ours.start(body, 1, 2).start(POLL, 3).start("pause()\n" + POLL, 0)
        assert ours.says(0, 0, 1, 1, 2, 2, 3) == ["here", "paused"] * 3 + ["here"]
        ours.go(1, 2)
        assert ours.end(1, 2) == [["error: no 1"], ["error: no 2"]]
        ours.go(0)
        assert [sorted(lines) for lines in ours.end(0, 3)] == [["error: rank 1: no 1", "error: rank 2: no 2"]] * 2


def test_where_hosts_differ_they_are_named() -> None:
    with job(3) as ours:
        ours.endpoints[1] = f"127.0.0.2:{ours.ports[1]}"
        ours.start("raise WorkError('no')", 1).start(POLL, 0, 2)
        assert [lines[-1] for lines in ours.end(1, 0, 2)] == ["error: no", *["error: rank 1 (127.0.0.2): no"] * 2]


@pytest.mark.parametrize("interrupted", [0, 2])
def test_interrupted_in_the_middle_of_a_message(interrupted: int) -> None:
    """Its message is stuck halfway, as the reader is stopped. Then it fails; the reader gets the message whole."""

    big = "signal.setitimer(signal.ITIMER_REAL, 0.3)\nme.gather('x' * 8_000_000)"
    with job(3) as ours:
        if interrupted:
            ours.start(big, 2).start("me.gather(0)\n" + POLL, 1).start("pause()\nme.gather(0)\n" + POLL, 0)
        else:
            late = "me._tell('gather', 0)\npause()\n" + POLL
            ours.start(big, 0).start("me.gather(0)\nme.gather(0)", 1).start(late, 2)
        reader = 2 - interrupted
        assert ours.says(interrupted, interrupted, reader, reader) == ["here", "interrupted", "here", "paused"]
        ours.go(reader)
        assert ours.end(interrupted) == [["error: it was interrupted"]]
        for said in ours.end(reader, 1):
            assert said[-1] == f"error: rank {interrupted}: it was interrupted"


def test_interrupts_between_any_two_steps_of_writing() -> None:
    """Frames arrive as they were, although hundreds of KeyboardInterrupts hit the writer, however busy the machine is."""
    one, other = socket.socketpair()
    armed: list[bool] = []
    interrupts = 0

    def interrupt(*_: object) -> None:
        if armed:
            armed.clear()
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    peer = messages.Peer(one)
    other.setblocking(False)
    sent, received = bytearray(), bytearray()
    limit = time.monotonic() + 60
    signal.setitimer(signal.ITIMER_REAL, 5e-5, 5e-5)
    try:
        while peer.outgoing or (interrupts < 1000 and time.monotonic() < limit):
            if not peer.outgoing:
                header = random.randbytes(random.randrange(1, 300_000))
                sent += header
                peer.outgoing.append((memoryview(header), []))
            try:
                armed.append(True)
                peer.write()
                armed.clear()
            except KeyboardInterrupt:
                interrupts += 1
            with contextlib.suppress(BlockingIOError):
                received += other.recv(random.randrange(1, 200_000))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    other.setblocking(True)
    peer.close()
    while chunk := other.recv(1 << 20):
        received += chunk
    other.close()
    assert interrupts > 100
    assert received == sent


# --- meeting ---------------------------------------------------------------------------------------------------------


def hello(job: Job, number: int) -> bytes:
    return messages.packed("hello", [ranks.Ranks(number, job.endpoints)._token, number])


def test_strangers_are_ignored() -> None:
    with job(3) as ours, job(3) as theirs, contextlib.ExitStack() as stack:
        ours.start("say(me.gather(me.number))", 0)
        silent = [stack.enter_context(call(ours.ports[0])) for _ in range(40)]
        silent += [stack.enter_context(call(ours.ports[0], hello(ours, 1)[:20]))]
        loud = [
            b"GET / HTTP/1.1\r\n\r\n",
            b"\xff" * 100_000,
            b"\0" * 8,
            hello(theirs, 1),
            hello(ours, 3),
            hello(ours, 1) + b"x",
        ]
        for words in loud:
            with call(ours.ports[0]) as stranger, contextlib.suppress(ConnectionError):
                stranger.sendall(words)
                assert stranger.recv(1) == b""
        with call(ours.ports[0]) as stranger:  # its end is a reset
            stranger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        ours.start("say(me.gather(me.number))", 1, 2)
        assert ours.end() == [["here", "[0, 1, 2]", "done"]] * 3
        assert [stranger.recv(1) for stranger in silent] == [b""] * len(silent)


def test_a_second_rank_of_the_same_number_is_dropped_and_the_first_one_missed() -> None:
    with job(3) as ours:
        ours.start("", 0)
        words = hello(ours, 1)
        with call(ours.ports[0], words[:30]) as first:
            first.sendall(words[30:])
            assert first.recv(1000) == messages.packed("welcome", ranks.Ranks(0, ours.endpoints)._token)
            with call(ours.ports[0], words) as second:
                assert second.recv(1) == b""
        assert ours.end(0) == [["error: rank 1 ended unexpectedly"]]


@pytest.mark.parametrize("words", [b"\xff\xff\xff\xff", b"\0\0\0\2{}", b"\0\0\0\1[", b"\0\0\0\x011"])
def test_a_rank_that_talks_nonsense_is_given_up(words: bytes) -> None:
    with job(2) as ours:
        ours.start("", 0)
        with call(ours.ports[0], hello(ours, 1)) as other:
            assert other.recv(1000)
            other.sendall(words)
            assert ours.end(0) == [["error: rank 1 ended unexpectedly"]]


@pytest.mark.exhaustive
def test_a_rank_that_does_not_come() -> None:
    with job(3) as ours:
        ours.start("", 0, 1, CONNECT_SECONDS="3")
        assert (
            ours.end(0, 1)
            == [
                [
                    "error: rank 2 didn't come within 3 seconds; check the log there, and that"
                    f" {ours.endpoints[0]} can be reached from there; {ALONE}"
                ]
            ]
            * 2
        )


@pytest.mark.exhaustive
def test_rank_0_does_not_come() -> None:
    with job(3) as ours:
        ours.start("", 1, 2, CONNECT_SECONDS="1")
        assert ours.end(1, 2) == [
            [
                f"error: rank {number} couldn't reach rank 0 at {ours.endpoints[0]} within 1 seconds (Connection refused);"
                f" check that it runs and that its machine lets others connect to that port; {ALONE}"
            ]
            for number in (1, 2)
        ]


@pytest.mark.parametrize("number", [0, 1])
def test_who_waits_says_for_whom(number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A training job's variables in the shell make a merge wait for ranks that nobody starts."""
    monkeypatch.setattr(ranks, "NOTICE_SECONDS", 0.2)
    monkeypatch.setattr(ranks, "CONNECT_SECONDS", 0.5)
    endpoints = [f"127.0.0.1:{port}" for port in free_ports(2)]
    rank = ranks.Ranks(number, endpoints)
    with pytest.raises(WorkError):
        rank.connect()
    rank.close()
    whom = f"rank 0 at {endpoints[0]} (Connection refused)" if number else "rank 1"
    assert caplog.messages == [f"rank {number} waits for {whom}, 0.5 seconds at most; {ALONE}"]


@pytest.mark.exhaustive
def test_the_port_is_taken() -> None:
    with job(2) as ours, socket.create_server(("127.0.0.1", ours.ports[0])):
        ours.start("", CONNECT_SECONDS="1")
        (first,), (second,) = ours.end(0, 1)
        where = ours.endpoints[0]
        reason = "Address already in use"
        assert first == f"error: rank 0 can't listen on {where} ({reason}); end what uses that port, or launch again"
        assert second.startswith(f"error: rank 1 couldn't reach rank 0 at {where} within 1 seconds (no answer); ")


@pytest.mark.exhaustive
def test_rank_0_of_another_job_answers() -> None:
    with job(2) as ours, job(2) as theirs:
        theirs.endpoints[0] = ours.endpoints[0]
        ours.start("", 0)
        theirs.start("", 1, CONNECT_SECONDS="1")
        ((said,),) = theirs.end(1)
        assert "within 1 seconds (something else answers there); " in said
        ours.start("", 1)
        assert ours.end() == [["here", "done"]] * 2


def test_a_host_that_is_not_known_here() -> None:
    (port,) = free_ports(1)
    for host in ("192.0.2.1", "no-such-host.invalid"):
        with ranks.Ranks(0, [f"{host}:{port}", "127.0.0.1:1"])._listen() as listener:
            assert listener.getsockname() == ("0.0.0.0", port)


def test_a_try_that_reaches_itself_leaves_the_port_to_rank_0() -> None:
    """Connecting to a port on which no process listens may connect a socket to itself, if it gets that port."""
    (port,) = free_ports(1)
    me = ranks.Ranks(0, [f"127.0.0.1:{port}", "127.0.0.1:1"])
    with socket.socket() as itself:
        itself.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        itself.bind(("127.0.0.1", port))
        itself.connect(("127.0.0.1", port))
        me._listen().close()
    me._listen().close()


def test_a_machine_without_power_is_missed_within_a_minute() -> None:
    """Keepalive probes are enabled; only a machine that really loses power would test more."""
    with socket.create_server(("127.0.0.1", 0)) as listener, call(listener.getsockname()[1]) as connection:
        peer = messages.Peer(connection)
        assert peer.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        first = "TCP_KEEPIDLE" if hasattr(socket, "TCP_KEEPIDLE") else "TCP_KEEPALIVE"
        names = (first, "TCP_KEEPINTVL", "TCP_KEEPCNT")
        idle, interval, count = (peer.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in names)
        assert idle + interval * count <= 60
        for nbytes, limit in ((100, 60_000), (1 << 20, 0), (100, 60_000)):
            peer.tell(bytes(nbytes))
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                assert peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == limit
        peer.close()


# --- the launcher's variables ----------------------------------------------------------------------------------------


def environment(monkeypatch: pytest.MonkeyPatch, **values: str | None) -> None:
    given = {"NUM": "2", "ID": "1", "ENDPOINTS": "10.0.0.1:70,[::1]:80", "CURRENT": "[::1]:80", **values}
    for name, value in zip(VARIABLES, (given["NUM"], given["ID"], given["ENDPOINTS"], given["CURRENT"]), strict=True):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)


@pytest.mark.parametrize("count", [None, "", "1"])
def test_alone(monkeypatch: pytest.MonkeyPatch, count: str | None) -> None:
    environment(monkeypatch, NUM=count, ENDPOINTS=None, ID="x")
    assert ranks.Ranks.from_environment() is None


def test_one_rank_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "create_server")
    me = ranks.Ranks(0, ["alone"])
    me.connect()
    me.check()
    assert me.gather((1, 2)) == [[1, 2]]
    me.close()


@pytest.mark.parametrize("current", [None, "[::1]:80"])
def test_not_alone(monkeypatch: pytest.MonkeyPatch, current: str | None) -> None:
    environment(monkeypatch, CURRENT=current)
    me = ranks.Ranks.from_environment()
    assert me
    assert (me.number, me.count, me.failure, me.waitables()) == (1, 2, [], [])
    assert [ranks._address(endpoint) for endpoint in me._endpoints] == [("10.0.0.1", 70), ("::1", 80)]
    me.fail(["nobody hears it"])
    me.close()


NOT_A_NUMBER = "PADDLE_TRAINERS_NUM must be a number of processes, not"
NOT_A_RANK = "PADDLE_TRAINER_ID must be a number from 0 to 1, not"
NOT_ENDPOINTS = "PADDLE_TRAINER_ENDPOINTS must hold 2 different endpoints, each host:port, not"


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("NUM", "two", f"{NOT_A_NUMBER} 'two'"),
        ("NUM", "0", f"{NOT_A_NUMBER} '0'"),
        ("NUM", "-1", f"{NOT_A_NUMBER} '-1'"),
        ("ID", None, f"{NOT_A_RANK} ''; {ALONE}"),
        ("ID", "2", f"{NOT_A_RANK} '2'; {ALONE}"),
        ("ID", "-1", f"{NOT_A_RANK} '-1'; {ALONE}"),
        ("ENDPOINTS", None, f"{NOT_ENDPOINTS} ''; {ALONE}"),
        ("ENDPOINTS", "a:1", f"{NOT_ENDPOINTS} 'a:1'; {ALONE}"),
        ("ENDPOINTS", "a:1,a:1", f"{NOT_ENDPOINTS} 'a:1,a:1'; {ALONE}"),
        ("ENDPOINTS", "a:1,b", f"{NOT_ENDPOINTS} 'a:1,b'; {ALONE}"),
        ("ENDPOINTS", "a:1,:2", f"{NOT_ENDPOINTS} 'a:1,:2'; {ALONE}"),
        ("ENDPOINTS", "a:1,b:0", f"{NOT_ENDPOINTS} 'a:1,b:0'; {ALONE}"),
        ("ENDPOINTS", "a:1,b:65536", f"{NOT_ENDPOINTS} 'a:1,b:65536'; {ALONE}"),
        ("ENDPOINTS", "a:1,b:2,c:3", f"{NOT_ENDPOINTS} 'a:1,b:2,c:3'; {ALONE}"),
        ("CURRENT", "a:1", "PADDLE_CURRENT_ENDPOINT is 'a:1', but PADDLE_TRAINER_ENDPOINTS holds '[::1]:80' for rank 1"),
    ],
)
def test_variables_that_make_no_sense(monkeypatch: pytest.MonkeyPatch, name: str, value: str | None, problem: str) -> None:
    environment(monkeypatch, **{name: value})
    with pytest.raises(WorkError) as error:
        ranks.Ranks.from_environment()
    assert error.value.problems == [problem]
