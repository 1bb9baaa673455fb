"""Test the process that forks workers: what it holds when it forks, and what becomes of it and its workers."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from paddle_merge import MergeConfig, WorkError, merge
from paddle_merge.plan.planner import make_plan
from paddle_merge.recipe.request import Request
from paddle_merge.run import fork_server, pool, worker_process
from paddle_merge.run.fork_server import ForkServer, started_early
from paddle_merge.run.job import Job
from paddle_merge.run.pool import MOST_PIECES, WorkerPool
from paddle_merge.run.ranks import Ranks
from paddle_merge.run.worker_process import serve
from tests.support.checkpoints import read, write
from tests.support.sweeps import few

ROOT = Path(__file__).parents[2]


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
    for ask in (lambda: server.status(worker), lambda: server.fork([])):
        with pytest.raises(WorkError, match="the process that starts workers was killed by SIGKILL"):
            ask()


def test_killed_while_it_imports_it_says_so() -> None:
    server = ForkServer()
    process_of(server).kill()
    with pytest.raises(WorkError, match="the process that starts workers was killed by SIGKILL"):
        server.fork([])
    server.close()


@pytest.mark.parametrize(
    ("patch", "said"),
    [
        (
            "import os\ndef fork():\n    raise OSError(12, '')\nos.fork = fork\n",
            r"can't start a worker \(Cannot allocate memory\)",
        ),
        ("import sys\nsys.modules['numba'] = None\n", "can't start workers: ModuleNotFoundError: import of numba halted"),
        pytest.param(
            "import threading\ndef start(_):\n    raise RuntimeError('no thread')\nthreading.Thread.start = start\n",
            r"a worker failed \(RuntimeError: no thread\)",
            marks=pytest.mark.exhaustive,
        ),
    ],
    ids=["fork", "imports", "worker"],
)
def test_what_fails_is_told_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], patch: str, said: str
) -> None:
    model = str(write(tmp_path / "a", {f"t{k}": np.ones(9) for k in range(2)}))
    (tmp_path / "sitecustomize.py").write_text(patch)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(WorkError, match=said) as error:
        merge(MergeConfig(model_path_list=[model, model], output_path=str(tmp_path / "out"), n_process=2))
    assert len(error.value.problems) == 1
    assert "Traceback" not in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


SUBREAPER = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: orphans become its children, as those of process 1 are
signal.signal(signal.SIGCHLD, signal.{})
from paddle_merge import MergeConfig, merge
merge(MergeConfig(model_path_list=sys.argv[1:3], output_path=sys.argv[3], n_process=2))
try:
    print(os.waitpid(-1, os.WNOHANG))
except ChildProcessError:
    print("no child is left")
"""


@pytest.mark.parametrize("how", few(["SIG_IGN", "SIG_DFL"]))
def test_a_merge_leaves_no_orphans(tmp_path: Path, how: str) -> None:
    """Where nobody looks after them, as in a container whose first process is the user's, they would stay for ever."""
    models = [str(write(tmp_path / name, {f"t{k}": np.ones(9) for k in range(2)})) for name in ("a", "b")]
    command = [sys.executable, "-c", SUBREAPER.format(how), *models, str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert (done.stdout, done.stderr) == ("no child is left\n", "")


@pytest.mark.parametrize("stopped", few([False, True]))
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


def test_very_many_small_pieces_are_merged_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {f"t{k}": np.full(9, k, np.float32) for k in range(20)}
    models, out = [str(write(tmp_path / name, tensors)) for name in ("a", "b")], tmp_path / "out"
    monkeypatch.setattr(pool, "WorkerPool", None)
    monkeypatch.setattr(pool, "MANY_PIECES", 19)
    with started_early():
        merge(MergeConfig(model_path_list=models, output_path=str(out), n_process=1))
    assert {name: set(values) for name, values in read(out).items()} == {f"t{k}": {k} for k in range(20)}


def test_small_pieces_are_handed_out_together(tmp_path: Path) -> None:
    """A worker that dies then may have been at any of them."""
    tensors = {f"t{k}": np.full(9, k, np.float32) for k in range(400)}
    models = [str(write(tmp_path / name, tensors)) for name in ("a", "b")]
    plan = make_plan(Request.of(MergeConfig(model_path_list=models, output_path="out")).checked_recipe(), 1)
    pool = WorkerPool(plan, plan.pieces, Job(None))
    with pool:
        (connection,) = pool._workers
        pool._doing[connection] = deque()
        pool._hand_out(connection, iter(plan.pieces))
        assert [len(batch) for batch in pool._doing[connection]] == [MOST_PIECES]
        (worker,) = workers_of(pool._server, 1)
        worker.kill()
        first = plan.tensors[plan.pieces[0].tensor].name
        assert pool._obituary(pool._workers[0]).endswith(f"while merging tensor '{first}' or one of the 63 after it")
    with WorkerPool(dataclasses.replace(plan, n_process=3), plan.pieces[:5], Job(None)) as pool:
        waiting = iter(plan.pieces[:5])
        for connection in pool._workers:
            pool._doing[connection] = deque()
            pool._hand_out(connection, waiting)
        assert [len(batch) for (batch,) in pool._doing.values()] == [1, 1, 1]  # few are shared out
    out = tmp_path / "out"
    merge(MergeConfig(model_path_list=models, output_path=str(out), n_process=3))
    merged = read(out)
    assert all(np.array_equal(merged[name], tensors[name]) for name in tensors)


def test_a_worker_gets_its_next_small_pieces_while_it_merges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {f"t{k}": np.full(9, k, np.float32) for k in range(300)}
    models = [str(write(tmp_path / name, tensors)) for name in ("a", "b")]
    plan = make_plan(Request.of(MergeConfig(model_path_list=models, output_path="out")).checked_recipe(), 1)
    monkeypatch.setattr(worker_process, "PROGRESS_SECONDS", 0.0)  # what it reads is told at once, if it may be
    ours, its = Pipe()
    serving = threading.Thread(target=serve, args=(its,))
    serving.start()
    ranges = plan.pieces[:3], plan.pieces[3:5], plan.pieces[5:6]
    batches = [[(plan.tensors[piece.tensor], piece) for piece in some] for some in ranges]
    ours.send(Job(None))
    ours.send(batches[0])
    assert ours.recv() == ("ready",)
    assert not ours.poll(1)  # their reports come when the next batch is there
    for batch, following, asks in ((batches[0], batches[1], True), (batches[1], batches[2], False)):
        ours.send(following)
        kind, reports, nbytes, asked = received(ours)
        assert (kind, [report.tensor for report in reports]) == ("done", [tensor.name for tensor, _ in batch])
        assert nbytes == sum(tensor.traffic for tensor, _ in batch)
        assert asked is asks  # a batch of one may be a large piece, during which nothing is sent ahead
    kind, reports, _, asked = received(ours)
    assert (kind, len(reports), asked) == ("done", 1, True)
    ours.send(None)
    serving.join()


def test_a_worker_that_fails_takes_the_batch_that_it_asked_for(tmp_path: Path) -> None:
    """The command may be sending it, and reads nothing until it is sent."""
    tensors = {f"t{k}": np.full(9, k, np.float32) for k in range(300)}
    models = [write(tmp_path / name, tensors) for name in ("a", "b")]
    request = Request.of(MergeConfig(model_path_list=[str(one) for one in models], output_path="out"))
    plan = make_plan(request.checked_recipe(), 1)
    (file,) = models[0].glob("*.safetensors")
    file.write_bytes(b"")
    ours, its = Pipe()
    serving = threading.Thread(target=serve, args=(its,))
    serving.start()
    ours.send(Job(None))
    ours.send([(plan.tensors[piece.tensor], piece) for piece in plan.pieces[:3]])
    assert ours.recv() == ("ready",)
    assert not ours.poll(1)
    ours.send(None)
    kind, sentence, trace = ours.recv()
    assert kind == "error"
    assert "was it changed while merging" in sentence
    assert "in serve" in trace
    serving.join()


def received(connection: Connection) -> Any:
    """Return the next message that isn't about progress."""
    while (message := connection.recv())[0] == "progress":
        pass
    return message


@pytest.mark.parametrize("damaged", few([True, False]))
def test_messages_of_any_length_hold_nobody_up(tmp_path: Path, damaged: bool) -> None:
    """A pipe holds some 200 kB, or 270 short messages: if both sides wrote more, and none read, they would wait for ever."""
    tensors = {f"t{k}." + "n" * 8000: np.full(9, k, np.float32) for k in range(300)}
    models = [write(tmp_path / name, tensors) for name in ("a", "b")]
    request = Request.of(MergeConfig(model_path_list=[str(one) for one in models], output_path="out"))
    plan = make_plan(request.checked_recipe(), 1)
    with WorkerPool(plan, plan.pieces, Job(None)) as pool:
        if damaged:  # a worker fails while the command sends it its next batch
            (file,) = models[0].glob("*.safetensors")
            os.truncate(file, file.stat().st_size - 9 * 4 * 150)
            with pytest.raises(WorkError, match="was it changed while merging"):
                list(pool.work(lambda _: None, Ranks(0, ["alone"])))
        else:
            assert len(list(pool.work(lambda _: None, Ranks(0, ["alone"])))) == len(tensors)
