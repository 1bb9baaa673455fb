"""Test the processes that score: what becomes of those that end when they shouldn't, and what a result may hold."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from paddle_merge import WorkError
from paddle_merge.search import scorers
from paddle_merge.search.contract import Scores
from paddle_merge.search.job import Job, Result, Setup
from paddle_merge.search.scorers import Processes
from paddle_merge.search.spec import Data, Evaluation
from tests.support.checkpoints import write

LATE = """
import os, threading, time

def end():  # when the test says so
    while not os.path.exists(os.path.join(os.path.dirname(__file__), "go")):
        time.sleep(0.01)
    os._exit(1)

threading.Thread(target=end, daemon=True).start()

def score(candidate, split, seed, samples):
    return {"loss": float(candidate.state_dict()["w"][0])}
"""
CHILD = """
import os, time

def score(candidate, split, seed, samples):
    if os.fork() == 0:
        time.sleep(600)
    os._exit(3)
"""
CRASH = """
import os

def score(candidate, split, seed, samples):
    folder = candidate.folder()
    assert os.path.exists(os.path.join(folder, "model.safetensors"))
    with open(os.path.join(os.path.dirname(__file__), "written"), "w") as file:
        file.write(folder)
    os._exit(3)
"""
EARLY = """
import os
if os.getpid() != int(os.environ["TEST_PARENT"]):
    os._exit(4)

def score(candidate, split, seed, samples):
    return {"loss": 1.0}
"""


def setup(folder: Path, code: str) -> Setup:
    import numpy as np

    (folder / "late.py").write_text(code)
    write(folder / "model", {"w": np.full(3, 2.0)}, format="pt")
    return Setup(Evaluation("python", "late:score"), Data(), folder=str(folder))


def end(made: Processes, folder: Path) -> None:
    """Let the only process end, which has no job."""
    (folder / "go").touch()
    made._workers[0].process.wait(timeout=60)
    (folder / "go").unlink()


@pytest.mark.exhaustive
def test_a_process_that_ends_between_two_jobs_fails_nobody(tmp_path: Path) -> None:
    made = Processes(setup(tmp_path, LATE), ("loss",), 1)
    try:
        for number in range(3):
            (result,) = made.score([Job(number, "one", path=str(tmp_path / "model"))])
            assert (result.number, result.metrics, result.error) == (number, {"loss": 2.0}, "")
            end(made, tmp_path)
    finally:
        made.close()


def test_a_death_is_noticed_while_a_child_holds_the_connection(tmp_path: Path) -> None:
    made = Processes(setup(tmp_path, CHILD), ("loss",), 1)
    try:
        (result,) = made.score([Job(7, "one", path=str(tmp_path / "model"))])
    finally:
        made.close()
    assert (result.number, result.error) == (7, "its process ended with exit status 3")


def test_what_is_killed_leaves_no_model_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A merge for each candidate that crashed or took too long would fill the disk."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    made = Processes(setup(tmp_path, CRASH), ("loss",), 1)
    recipe = f"merge_method: linear\nmodels: [{{model: {tmp_path}/model, parameters: {{weight: 1}}}}]"
    try:
        (result,) = made.score([Job(1, "m", recipe=recipe)])
        assert result.error.endswith("exit status 3")
        assert (tmp_path / "written").read_text().startswith(f"{tmp_path}/tmp/paddle_merge_")
        assert list((tmp_path / "tmp").iterdir()) == []
    finally:
        made.close()


def test_a_process_that_ends_before_its_first_job_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_PARENT", str(os.getpid()))
    made = Processes(setup(tmp_path, EARLY), ("loss",), 2)
    try:
        with pytest.raises(WorkError, match="ended before its first one: its process ended with exit status 4"):
            list(made.score([Job(0, "one", path=str(tmp_path / "model"))]))
    finally:
        made.close()


def test_processes_that_keep_ending_are_not_started_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorers, "MOST_LOST", 0)
    made = Processes(setup(tmp_path, LATE), ("loss",), 1)
    try:
        job = Job(0, "one", path=str(tmp_path / "model"))
        list(made.score([job]))
        end(made, tmp_path)
        with pytest.raises(WorkError, match="ended between two of them: its process ended with exit status 1"):
            list(made.score([job]))
    finally:
        made.close()


def test_what_is_no_number_is_left_out() -> None:
    """JSON has no NaN, and a standard error of such scores is none."""
    nan = float("nan")
    scores = Scores({"a": 1.0, "b": nan}, {"a": [1.0, nan], "c": [1, 2]}, cost={"tokens": 3, "usd": nan, "by": "me"})  # type: ignore[dict-item]
    result = Result.of(7, scores, 0.5, ("a",))
    assert (result.metrics, result.samples, result.cost) == ({"a": 1.0}, {"c": [1.0, 2.0]}, {"tokens": 3.0})
