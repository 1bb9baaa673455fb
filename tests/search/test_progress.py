"""Test what is shown while a search runs."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from paddle_merge import ConfigError
from paddle_merge.search import progress
from paddle_merge.search.asked import Asked
from paddle_merge.search.evolve import evolve
from paddle_merge.search.job import Result
from paddle_merge.search.journal import Place
from paddle_merge.search.outcome import Scored
from paddle_merge.search.progress import Progress, described, duration, scalars
from tests.support.searches import workshop

SEARCH = """
evaluate: {python: "score:score"}
objectives: {loss: minimize}
evaluations: 20
seed: 1
"""
SPEC: Any = SimpleNamespace(objectives={"loss": "minimize"})


def done(generation: int, loss: float | None, round: int = 0) -> Scored:
    result = Result(0, {"loss": loss}) if loss is not None else Result(0, error="no luck")
    return Scored("a candidate", result, generation, round=round)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, as progress.py sees it; a test moves it."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_best_and_mean_are_of_what_can_be_compared() -> None:
    """0.1 was scored on a few samples only, so it is not the best; the mean is of the last generation."""
    found = [done(0, 0.5, 1), done(0, 0.1), done(1, 0.4, 1), done(1, 0.8), done(1, None)]
    assert scalars(found, {"loss": "minimize"}) == {"best/loss": 0.4, "mean/loss": pytest.approx(0.6), "failed": 1.0}
    assert scalars(found, {"loss": "maximize"})["best/loss"] == 0.5
    assert described(found, {"loss": "minimize"}) == "generation 1, loss best 0.4, mean 0.6, 1 failed"
    assert described([done(0, None)], {"loss": "minimize"}) == "generation 0, loss best -, mean -, 1 failed"


def test_messages_come_some_seconds_apart(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    """A candidate a second, four a generation, of which the first was in the journal."""
    caplog.set_level(logging.INFO, logger="paddle_merge")
    shown = Progress(SPEC, 40, progress=False)
    found = [done(0, 0.9)] * 3 + [done(0, None)]
    shown.generation(found)
    for generation in range(1, 10):
        for _ in range(4):
            clock[0] += 1
            shown.scored(Place("search", generation, 0))
        found += [done(generation, 0.5 / generation)] * 4
        shown.generation(found)
    shown.scored(Place("baselines", -1, 0))
    shown.scored(Place("baselines", -1, 1))
    shown.close()
    assert caplog.messages == [
        "a candidate failed, which counts as the worst score: no luck",
        "14 of 40 candidates; generation 2, loss best 0.25, mean 0.25, 1 failed; about 26 s left",
        "24 of 40 candidates; generation 4, loss best 0.125, mean 0.125, 1 failed; about 16 s left",
        "34 of 40 candidates; generation 7, loss best 0.07143, mean 0.07143, 1 failed; about 6 s left",
        "scoring inputs and uniform merges",
    ]


def test_the_line_counts_each_candidate_once(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    """However many rounds of a race it is in."""
    shown = Progress(SPEC, 8, progress=True)
    for number in range(4):
        shown.scored(Place("search", 0, number))
    shown.scored(Place("search", 0, 2, 1))
    shown.generation([done(0, 0.5)] * 4)
    shown.scored(Place("final", -1, 0))
    shown.close()
    error = capsys.readouterr().err
    assert "4/8" in error
    assert "5/8" not in error
    assert "generation 0, loss best 0.5, mean 0.5" in error
    assert "scoring the finalists" in error


def test_durations() -> None:
    assert [duration(one) for one in (0.2, 59, 200, 7500)] == ["1 s", "59 s", "3 min 20 s", "2 h 5 min"]


class Writer:
    """Stands for visualdl.LogWriter. made: all of them."""

    made: list[Writer] = []  # noqa: RUF012 - cleared by the test

    def __init__(self, logdir: str, file_name: str):
        self.logdir, self.closed, self.points = logdir, False, list[tuple[str, float, int]]()
        Path(logdir).mkdir(exist_ok=True)
        (Path(logdir) / file_name).write_text("")
        Writer.made.append(self)

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.points.append((tag, value, step))

    def close(self) -> None:
        self.closed = True


@pytest.mark.exhaustive
def test_scalars_for_visualdl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that goes on writes all of them again, into the same file."""
    module = ModuleType("visualdl")
    module.LogWriter = Writer  # type: ignore[attr-defined]
    module.__spec__ = SimpleNamespace()  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "visualdl", module)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "score", raising=False)
    Writer.made.clear()
    path, out, logs = workshop(tmp_path, SEARCH), str(tmp_path / "out"), str(tmp_path / "logs")
    outcome = evolve(Asked(str(path), out), False, logs)
    evolve(Asked(str(path), out, resume=True), False, logs)
    first, second = Writer.made
    assert first.points == second.points
    assert first.closed
    assert first.logdir == logs
    losses = [one.known.metrics["loss"] for one in outcome.candidates]
    assert first.points == [
        ("best/loss", min(losses[:9]), 9),
        ("mean/loss", pytest.approx(sum(losses[:9]) / 9), 9),
        ("failed", 0.0, 9),
        ("best/loss", min(losses), 18),
        ("mean/loss", pytest.approx(sum(losses[9:]) / 9), 18),
        ("failed", 0.0, 18),
    ]


def test_the_real_visualdl_reads_them(tmp_path: Path) -> None:
    pytest.importorskip("visualdl")
    from visualdl import LogReader

    for _ in range(2):
        shown = Progress(SPEC, 8, progress=False, visualdl=str(tmp_path))
        shown.generation([done(0, 0.5)] * 4)
        shown.generation([done(0, 0.5)] * 4 + [done(1, 0.25)] * 4)
        shown.close()
    reader = LogReader(file_path=str(tmp_path / progress.RECORDS))
    assert [(one.id, one.value) for one in reader.get_data("scalar", "best/loss")] == [(4, 0.5), (8, 0.25)]


def test_without_visualdl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress.importlib.util, "find_spec", lambda name: None)
    path = workshop(tmp_path, SEARCH)
    with pytest.raises(ConfigError, match=r"--visualdl needs the package visualdl.*pip install visualdl"):
        evolve(Asked(str(path), str(tmp_path / "out")), False, "logs")
    assert not (tmp_path / "out").exists()
