"""Test several ranks under `python -m paddle.distributed.launch`: the same bytes as one process, and all fail together."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from paddle_merge import MergeConfig, merge
from paddle_merge.recipe.request import Request
from paddle_merge.run.output import writer
from tests.support.checkpoints import write
from tests.support.processes import workers_of
from tests.support.sweeps import few

Start = Callable[[list[list[str]]], list["subprocess.Popen[str]"]]
SHAPES = {f"layers.{number}.w": (50 + number, 70) for number in range(9)} | {"embed": (900, 300), "norm": (70,)}


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    """A merge of two models and a base, with everything but an output folder."""
    generator = np.random.default_rng(0)
    for name in ("base", "a", "b"):
        write(tmp_path / name, {key: generator.standard_normal(shape) for key, shape in SHAPES.items()}, "bfloat16")
    models = ["--model_path_list", str(tmp_path / "a"), str(tmp_path / "b"), "--base_model_path", str(tmp_path / "base")]
    return ["--merge_method", "della", *models, "--max_shard_size", "200KB"]


def alone(tmp_path: Path) -> dict[str, bytes]:
    """The weights that one process makes."""
    models = [str(tmp_path / "a"), str(tmp_path / "b")]
    config = MergeConfig(
        merge_method="della", model_path_list=models, base_model_path=str(tmp_path / "base"), max_shard_size="200KB"
    )
    config.output_path = str(tmp_path / "alone")
    merge(config)
    return weights(tmp_path / "alone")


def weights(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("model*")}


@pytest.mark.exhaustive
@pytest.mark.parametrize("how", [(2, 1, "pd"), (3, 2, "np"), (3, 1, "pd")])
def test_ranks_make_the_bytes_of_one_process(tmp_path: Path, flags: list[str], how: tuple[int, int, str]) -> None:
    ranks, n_process, tensor_type = how
    command = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", str(ranks), "--log_dir", "logs"]
    command += [sys.executable, "-m", "paddle_merge", *flags, "--output_path", "out"]
    command += ["--tensor_type", tensor_type, "--n_process", str(n_process)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(weights(tmp_path / "out")) > 3
    assert weights(tmp_path / "out") == alone(tmp_path)
    assert (tmp_path / "out" / "merge_config.json").exists()
    assert "merged into out" in (tmp_path / "logs" / "workerlog.0").read_text()
    assert "merged into out" not in (tmp_path / "logs" / "workerlog.1").read_text()


# --- without the launcher, which ends all ranks when one fails -----------------------------------------------------------


def ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start ranks as the launcher would: a command for each."""
    started: list[subprocess.Popen[str]] = []

    def start_all(commands: list[list[str]]) -> list[subprocess.Popen[str]]:
        endpoints = [f"127.0.0.1:{port}" for port in ports(len(commands))]
        for rank, command in enumerate(commands):
            environment = {
                **os.environ,
                "PYTHONPATH": str(Path(__file__).parents[2]),
                "PADDLE_TRAINER_ID": str(rank),
                "PADDLE_TRAINERS_NUM": str(len(commands)),
                "PADDLE_TRAINER_ENDPOINTS": ",".join(endpoints),
                "PADDLE_CURRENT_ENDPOINT": endpoints[rank],
            }
            code = "from paddle_merge.commands.main import main; main()"
            started.append(
                subprocess.Popen(
                    [sys.executable, "-c", code, *command], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
                )
            )
        return started

    yield start_all
    for process in started:
        with suppress(psutil.NoSuchProcess):  # a stopped worker would hold the pipe open
            for member in [*psutil.Process(process.pid).children(recursive=True), process]:
                member.kill()
        process.communicate()


def ended(processes: list[subprocess.Popen[str]]) -> list[tuple[int, list[str]]]:
    """Exit status and error lines of each."""
    results = []
    for process in processes:
        _, text = process.communicate(timeout=60)
        assert "Traceback" not in text
        results.append((process.returncode, [line for line in text.splitlines() if line.startswith("error: ")]))
    return results


def suspended_workers(process: subprocess.Popen[str], rank: int) -> list[psutil.Process]:
    """Its workers, stopped, so that it is surely at work. Rank 0's share is the largest tensor, which takes one."""
    workers: list[psutil.Process] = []
    while len(workers) < (2 if rank else 1):
        assert process.poll() is None
        workers = workers_of(process.pid)
    for worker in workers:
        worker.suspend()
    return workers


def test_one_rank_with_other_flags(tmp_path: Path, flags: list[str], start: Start) -> None:
    command = [*flags, "--output_path", "out"]
    results = ended(start([command, [*command, "--seed", "1"]]))
    for status, errors in results:
        assert status == 1
        assert errors == [errors[0]]
        assert "rank 1 would merge something else than rank 0" in errors[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.exhaustive
def test_one_rank_with_a_problem_of_its_own(tmp_path: Path, flags: list[str], start: Start) -> None:
    """The others say whose and what it is."""
    command = [*flags, "--output_path", "out"]
    results = ended(start([command, [*command, "--reserve_p", "7"]]))
    assert [status for status, _ in results] == [1, 1]
    assert results[0][1][0].startswith("error: rank 1: --reserve_p 7 is the fraction")
    assert results[1][1][0].startswith("error: --reserve_p 7 is the fraction")
    assert not (tmp_path / "out").exists()


@pytest.mark.exhaustive
def test_a_file_that_is_cut_off_on_the_way_fails_all(tmp_path: Path, flags: list[str], start: Start) -> None:
    """After the plan is made, and before rank 1's workers have read it: rank 0 removes the output.

    A rank whose workers have read it already finds at the end that it has changed.
    """
    said = re.compile("a/model.safetensors(: ends before tensor| has changed while it was merged)")
    processes = start([[*flags, "--output_path", "out", "--n_process", "2"]] * 2)
    workers = suspended_workers(processes[1], 1)
    os.truncate(tmp_path / "a" / "model.safetensors", 100)
    for worker in workers:
        worker.resume()
    for status, errors in ended(processes):
        assert status == 1
        assert errors
        assert all(map(said.search, errors))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("killed", few([1, 0, 2], 0))  # test_ranks.py kills ranks in the default run
def test_a_rank_that_is_killed_fails_all(tmp_path: Path, flags: list[str], start: Start, killed: int) -> None:
    command = [*flags, "--output_path", "out", "--n_process", "2"]
    processes = start([command] * 3)
    workers = suspended_workers(processes[killed], killed)
    while not list((tmp_path / "out").glob("*.partial")):
        time.sleep(0.01)
    processes[killed].send_signal(signal.SIGKILL)
    for worker in workers:
        with suppress(psutil.NoSuchProcess):  # the process that forked it has ended it meanwhile
            worker.kill()
    results = ended(processes)
    assert results[killed][0] == -signal.SIGKILL
    for rank, (status, errors) in enumerate(results):
        if rank != killed:
            assert status == 1
            assert errors == [f"error: rank {killed} ended unexpectedly"]
    assert (
        weights(tmp_path / "out") == {}
        if killed
        else not [path for path in (tmp_path / "out").iterdir() if not path.name.endswith(".partial")]
    )


@pytest.mark.exhaustive
def test_a_rank_that_is_interrupted_fails_all(tmp_path: Path, flags: list[str], start: Start) -> None:
    command = [*flags, "--output_path", "out", "--n_process", "2"]
    processes = start([command] * 2)
    suspended_workers(processes[1], 1)
    processes[1].send_signal(signal.SIGTERM)
    results = ended(processes)
    assert results[0] == (1, ["error: rank 1: it was interrupted"])
    assert results[1][0] == 130
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What rank 0 created isn't there."""
    write(tmp_path / "a", {"w": np.zeros(3)})
    from paddle_merge.plan.planner import make_plan

    recipe = Request.of(MergeConfig(model_path_list=[str(tmp_path / "a")] * 2)).checked_recipe()
    monkeypatch.setattr(writer, "SEEN_SECONDS", 0.2)
    output = writer.Output(str(tmp_path / "out"), make_plan(recipe))
    with pytest.raises(writer.OutputError, match="this machine doesn't see it; ranks on several machines need"):
        output.wait_until_seen()


@pytest.mark.exhaustive
def test_dry_run_is_said_once(tmp_path: Path, flags: list[str], start: Start) -> None:
    processes = start([[*flags, "--output_path", "out", "--dry_run"]] * 2)
    assert [status for status, _ in ended(processes)] == [0, 0]
    assert not (tmp_path / "out").exists()
