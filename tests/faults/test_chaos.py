"""Test interrupted merges: trials of every kind of tools/chaos.py, faults that its long runs found, and its checks."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.connection import Pipe
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from paddle_merge import MergeConfig, OutputError, WorkError, merge
from paddle_merge.run.job import Report
from paddle_merge.run.output import flock, journal
from paddle_merge.run.worker import Worker
from tests.support import chaos, checkpoints, disturbances, power
from tests.support.sweeps import few

ROOT = Path(__file__).parents[2]


@pytest.mark.exhaustive
def test_trials(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tools/chaos.py"), "--trials", str(len(disturbances.KINDS)), "--seed", "3"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    table = [row.split("|")[2:-1] for row in done.stdout.splitlines() if row.startswith("| ")][2:]
    rows = [list(map(int, row)) for row in table]
    assert len(rows) == len(disturbances.KINDS)
    assert all(trials == 1 and violations == 0 for trials, *_, violations in rows)
    assert sum(faults for _, faults, *_ in rows) > 5


# --- the judge -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chaos.make_models(tmp_path_factory.mktemp("chaos"))


Spoil = Callable[[Path], Any]
SPOILT: dict[str, tuple[Spoil, str]] = {
    "nothing": (lambda out: None, "whole"),
    "no record": (lambda out: (out / "merge_config.json").unlink(), "nothing"),
    "another shard": (lambda out: (out / "model-00001-of-00002.safetensors").write_bytes(b"x"), "x"),
    "a byte": (lambda out: os.truncate(out / "model-00002-of-00002.safetensors", 4_000_000), "x"),
    "a shard less": (lambda out: (out / "model-00001-of-00002.safetensors").unlink(), "x"),
    "no gates": (
        lambda out: [(out / name).unlink() for name in ("model.safetensors.index.json", "config.json", "merge_config.json")],
        "nothing",
    ),
}


@pytest.mark.parametrize("how", few(SPOILT, 2))
def test_the_judge(tmp_path: Path, models: Path, how: str) -> None:
    trial = chaos.Trial("errors", 0, tmp_path, models)
    trial.recipe = "linear"
    trial.put(chaos.wanted("linear", models))
    spoil, expected = SPOILT[how]
    spoil(trial.out)
    if expected == "x":
        with pytest.raises(chaos.BrokenPromiseError, match="would be loaded"):
            trial.state()
    else:
        assert trial.state() == expected


# --- a process that ends at any call ---------------------------------------------------------------------------------


class GoneError(BaseException):
    """The process was killed: nothing that it would still do is done."""


def killed_at(number: int, config: MergeConfig, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Merge until so many calls have changed names or disks; whether it came so far."""
    calls, locks = 0, []
    take = flock.FolderLock.take

    def taken(self: flock.FolderLock) -> None:
        take(self)
        locks.append(self)

    def ends(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls >= number:
                raise GoneError
            return real(*args, **options)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(journal, "SECONDS", 0.0)
        patch.setattr(flock.FolderLock, "take", taken)
        patch.setattr(os, "fsync", lambda _: None)  # for speed: no disk dies here
        for name in ("replace", "rename", "unlink", "fsync", "mkdir", "rmdir", "pwrite"):
            patch.setattr(os, name, ends(getattr(os, name)))
        try:
            merge(config)
        except GoneError:
            return True
        finally:
            for one in locks:
                one.drop()
    return False


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("earlier", few(["one file", "none", "the same names"]))
def test_killed_at_every_call(tmp_path: Path, earlier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left loads as the earlier merge or as the new one, if at all; --resume ends well; and a merge that begins
    again and fails gives the earlier one back, wherever the first was killed."""
    tensors = {name: np.arange(64.0) for name in ("u", "v", "w")}
    a = checkpoints.write(tmp_path / "a", tensors)
    b = checkpoints.write(tmp_path / "b", {name: values + 1 for name, values in tensors.items()})
    (a / "more").mkdir()
    for name in ("notes.txt", "more/notes.txt"):
        (a / name).write_text(name)
    common: dict[str, Any] = {"model_path_list": [str(a), str(b)], "output_path": str(tmp_path / "out")}
    out = tmp_path / "out"
    new = {
        **common,
        "max_shard_size": "600",
        "copy_file_list": ["notes.txt", "more/notes.txt"],
        "overwrite": earlier != "none",
    }
    merge(MergeConfig(**{**new, "overwrite": False}))
    right = files(out)
    old: dict[str, bytes] = {}

    def begin() -> None:
        shutil.rmtree(out, ignore_errors=True)
        for name, content in old.items():
            out.mkdir(exist_ok=True)
            (out / name).write_bytes(content)

    def finals() -> dict[str, bytes]:
        return {name: content for name, content in files(out).items() if not name.endswith(chaos.LITTER)}

    begin_size = {"one file": "5GB", "the same names": "600"}
    if earlier != "none":
        begin()
        merge(MergeConfig(**common, max_shard_size=begin_size[earlier], weight_list=[3.0, 1.0]))
        old = files(out)

    number, step = 0, 1 if earlier == "the same names" else 3
    begin()
    while killed_at(number := number + step, MergeConfig(**new), monkeypatch):
        left = finals()
        if chaos.loads(left):
            weights = {name: content for name, content in left.items() if name.endswith(chaos.WEIGHTS)}
            sources = [{name: one[name] for name in one if name.endswith(chaos.WEIGHTS)} for one in (right, old)]
            assert weights in sources, number
        if left != right:
            with monkeypatch.context() as patch:
                patch.setattr(Worker, "merge_all", lambda *_: (_ for _ in ()).throw(WorkError("no")))
                with pytest.raises(WorkError, match="no"):
                    merge(MergeConfig(**{**new, "overwrite": True}))
            assert files(out) == old, number
            begin()
            if killed_at(number, MergeConfig(**new), monkeypatch) and finals() != right:  # a thread makes some of the calls
                merge(MergeConfig(**new, resume=True))
                assert files(out) == right, number
        begin()
    assert number > 30


# --- found by long runs ----------------------------------------------------------------------------------------------


@pytest.mark.exhaustive
def test_a_worker_that_is_interrupted_alone(tmp_path: Path, models: Path) -> None:
    trial = chaos.Trial("kill-call", 0, tmp_path, models, "dare")
    fault = ["signal", int(signal.SIGINT), "self"]
    assert trial.run(who="worker", call="pwrite", at=1, fault=fault) == 1  # and no traceback, says the trial
    assert "error: a worker was killed by SIGINT while merging tensor" in trial.said[-1]


@pytest.mark.exhaustive
def test_a_finished_merge_survives_a_power_cut(tmp_path: Path, models: Path) -> None:
    """The name of the folder itself too."""
    trial = chaos.Trial("power", 0, tmp_path, models, "dare")
    trial.place.mkdir()
    assert trial.run(shadow=True) == 0
    for seed in range(8):
        again = tmp_path / "place again"
        shutil.copytree(trial.place, again, copy_function=os.link)
        power.cut(trial.place, trial.control, {}, Random(seed))
        assert trial.state() == "whole"
        shutil.rmtree(trial.place)
        again.rename(trial.place)


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    tensors = {f"t{k}": np.arange(100.0) for k in range(6)}
    return [checkpoints.write(tmp_path / name, tensors) for name in ("a", "b")]


@pytest.mark.parametrize("seconds", [0.0, 10.0])
def test_an_input_that_changes_while_it_is_read(
    tmp_path: Path, pair: list[Path], seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of what may come of its new bytes is noted, or becomes a checkpoint."""
    victim, right, done = pair[1] / "model.safetensors", Worker.merge, 0
    monkeypatch.setattr("paddle_merge.backends.budget.TOGETHER", 0)  # one piece after the other
    before = victim.stat()
    monkeypatch.setattr(journal, "SECONDS", seconds)

    def change(self: Worker, *args: Any) -> Report:
        nonlocal done
        done += 1
        if done == 4:
            victim.write_bytes(victim.read_bytes()[:-8] + bytes(8))
        return right(self, *args)

    monkeypatch.setattr(Worker, "merge", change)
    config = MergeConfig(model_path_list=[str(path) for path in pair], output_path=str(tmp_path / "out"))
    with pytest.raises(WorkError) as caught:
        merge(config)
    assert caught.value.problems == [f"{victim} has changed while it was merged: merge again"]
    stopped = journal.read(str(tmp_path / "out"))
    assert len(stopped.reports if stopped else []) <= 3
    assert not list((tmp_path / "out").glob("*.safetensors"))
    os.utime(victim, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_after_a_failed_sync_nothing_more_is_noted(
    tmp_path: Path, pair: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next sync would succeed, whatever the first has lost."""
    right, calls = journal.fsync, 0

    def fsync(path: str) -> None:
        nonlocal calls
        calls += path.endswith("model.safetensors.partial")
        if calls == 3 and path.endswith("model.safetensors.partial"):
            raise OSError(errno.EIO, "Input/output error")
        right(path)

    monkeypatch.setattr(journal, "SECONDS", 0.0)
    monkeypatch.setattr(journal, "fsync", fsync)
    monkeypatch.setattr("paddle_merge.backends.budget.TOGETHER", 0)  # one piece after the other
    noted = []
    bring = journal.Journal._bring
    monkeypatch.setattr(journal.Journal, "_bring", lambda self, new: [bring(self, new), noted.extend(new)][0])
    merge_one = Worker.merge

    def wait(self: Worker, *args: Any) -> Report:
        report = merge_one(self, *args)
        for other in journals:
            if other._visit is not None:
                other._visit.exception()
        return report

    journals: list[journal.Journal] = []
    start = journal.Journal.start
    monkeypatch.setattr(journal.Journal, "start", lambda self, *args: [journals.append(self), start(self, *args)][1])
    monkeypatch.setattr(Worker, "merge", wait)
    config = MergeConfig(model_path_list=[str(path) for path in pair], output_path=str(tmp_path / "out"))
    with pytest.raises(OutputError, match="Input/output error"):
        merge(config)
    assert len(noted) == 2
    stopped = journal.read(str(tmp_path / "out"))
    assert stopped is not None
    assert len(stopped.reports) == 2


def test_a_lock_lives_as_long_as_its_last_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flock, "ENDING_SECONDS", 0.1)
    mine = flock.FolderLock(str(tmp_path))
    mine.take()
    assert mine.file is not None
    assert flock.is_held(str(tmp_path))
    worker = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[mine.file])
    mine.drop()
    with pytest.raises(OutputError, match="another merge is being written there"):
        flock.FolderLock(str(tmp_path)).take()
    worker.communicate(b"\n")
    assert not flock.is_held(str(tmp_path))


def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    """Even those that have nothing to say, or never will."""
    code = "from paddle_merge.run.worker_process import main; import sys; main(Connection(int(sys.argv[1])))"
    code = f"from multiprocessing.connection import Connection; {code}"
    ours, theirs = Pipe()
    command = [sys.executable, "-c", code, str(theirs.fileno())]
    worker = subprocess.Popen(command, pass_fds=[theirs.fileno()], env={**os.environ, "PYTHONPATH": str(ROOT)})
    theirs.close()
    ours.close()
    assert worker.wait(timeout=30) in (0, 1)
