"""Test the process that forks workers: what it holds when it forks, and what becomes of it and its workers."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from paddle_merge.run import fork_server
from paddle_merge.run.fork_server import NOT_FORKED, ForkServer, started_early


@pytest.fixture
def server() -> Iterator[ForkServer]:
    server = ForkServer()
    yield server
    server.close()


def wait_for(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)


def process_of(server: ForkServer) -> psutil.Process:
    return psutil.Process(server._process.pid)


def workers_of(server: ForkServer, count: int) -> list[psutil.Process]:
    """Its workers, once there are so many, in the order in which they were started."""
    wait_for(lambda: len(process_of(server).children()) == count)
    return sorted(process_of(server).children(), key=lambda worker: worker.pid)


def files_of(pid: int) -> list[str]:
    folder = Path(f"/proc/{pid}/fd")
    return sorted(os.readlink(file) for file in folder.iterdir() if int(file.name) > 2)


def test_when_it_forks_it_has_one_thread_and_no_file_but_its_connection(server: ForkServer, tmp_path: Path) -> None:
    """A worker also has its own connection and what it is to hold, but nothing of the other workers."""
    held = os.open(tmp_path, os.O_RDONLY)
    for _ in range(2):
        server.fork([held])
    os.close(held)
    workers = workers_of(server, 2)
    wait_for(lambda: all(worker.num_threads() == 2 for worker in workers))  # one looks for the end of the parent
    assert process_of(server).num_threads() == 1
    (control,) = files_of(process_of(server).pid)
    for worker in workers:
        own, its = sorted(files_of(worker.pid), key=lambda file: file.startswith("socket"))
        assert own == str(tmp_path)
        assert its.startswith("socket")
        assert its != control
    assert process_of(server).environ().get("OPENBLAS_NUM_THREADS") == os.environ.get("OPENBLAS_NUM_THREADS")


def test_it_tells_how_a_worker_ended(server: ForkServer) -> None:
    connections = [server.fork([]) for _ in range(3)]
    workers = workers_of(server, 3)
    workers[1].kill()
    workers[2].send_signal(signal.SIGINT)
    connections[0].send(None)  # no job, which no parent sends
    assert [server.status(one) for one in reversed(connections)] == [-signal.SIGINT, -signal.SIGKILL, 1]


def test_of_a_killed_server_it_tells_its_own_end(server: ForkServer) -> None:
    worker = server.fork([])
    process_of(server).kill()
    assert server.status() == -signal.SIGKILL
    assert server.status(worker) == -signal.SIGKILL


def test_a_fork_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os\ndef fork():\n    raise OSError(12, 'no memory')\nos.fork = fork\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    server = ForkServer()
    try:
        assert server.status(server.fork([])) == NOT_FORKED + 12
    finally:
        server.close()


@pytest.mark.parametrize("stopped", [False, True])
def test_closing_it_ends_its_workers(stopped: bool) -> None:
    """Also those that don't react: who closes it may then remove what they wrote to."""
    server = ForkServer()
    server.fork([])
    (worker,) = workers_of(server, 1)
    if stopped:
        process_of(server).suspend()
        worker.suspend()
    server.close()
    assert not psutil.wait_procs([worker], timeout=5)[1]


def test_one_that_was_started_for_nothing_ends() -> None:
    with started_early():
        (process,) = psutil.Process().children()
        assert fork_server.is_waiting()
    assert not process.is_running()
    assert not fork_server.is_waiting()
