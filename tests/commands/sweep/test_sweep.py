"""The command sweep as people run it: what it prints, and that workers and a kill make no difference; and --pick of evolve.

Every element of pre is 0 and of aligned is 1; scores are made of the first element of a merge, as in tests/search.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.checkpoints import read, write
from tests.support.command_lines import cli
from tests.support.pages import ROOT

SCORE = """
import time
def score(candidate, split, seed, samples):
    a = round(float(candidate.state_dict()["layers.0.w.weight"][0, 0]), 6)
    time.sleep({0})
    return {{"reward": 10 * (2 * a - a * a), "reading": 50 - 20 * a * a}}
"""
SWEEP = """sweep:
  pre: {0}/pre
  aligned: {0}/aligned
  toward_aligned: 0:1:0.25
  evaluate: {{python: "scores_{1}:score"}}
  objectives: {{reward: maximize, reading: maximize}}
  pick: maximize reading subject to reward >= 0.9 of aligned
"""


def made(folder: Path, name: str, seconds: float = 0.0) -> Path:
    """Write two models, an evaluator in a module of its own, and a file for a sweep; return the file."""
    for model, value in (("pre", 0.0), ("aligned", 1.0)):
        write(folder / model, {f"layers.{layer}.w.weight": np.full((2, 3), value) for layer in range(2)}, format="pt")
    (folder / f"scores_{name}.py").write_text(SCORE.format(seconds))
    (folder / "sweep.yaml").write_text(SWEEP.format(folder, name))
    return folder / "sweep.yaml"


def report(folder: Path) -> Any:
    """Return a report without what differs between two equal sweeps: seconds."""

    def without(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: without(one) for key, one in value.items() if key != "seconds"}
        return [without(one) for one in value] if isinstance(value, list) else value

    return without(json.loads((folder / "report.json").read_text()))


def test_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = made(tmp_path, "printed")
    assert cli("sweep", str(file), "--output_path", str(tmp_path / "out"), "--quiet") == 0
    lines = capsys.readouterr().out.splitlines()
    # kept is 2 a - a^2, bought back 1 - a^2
    assert [line.split() for line in lines[:8]] == [
        ["point", "reward", "kept", "reading", "bought", "back"],
        ["pre", "0", "0.0%", "50", "100.0%"],
        ["aligned", "10", "100.0%", "30", "0.0%"],
        ["*", "linear", "0", "0", "0.0%", "50", "100.0%"],
        ["*", "linear", "0.25", "4.375", "43.8%", "48.75", "93.8%"],
        ["*", "linear", "0.5", "7.5", "75.0%", "45", "75.0%"],
        [">", "linear", "0.75", "9.375", "93.8%", "38.75", "43.8%"],
        ["*", "linear", "1", "10", "100.0%", "30", "0.0%"],
    ]
    said = " ".join(lines[9:])
    assert (
        f"toward_aligned: 0 is {tmp_path}/pre, the model before alignment, and 1 is {tmp_path}/aligned, the aligned" in said
    )
    # 0.4375 x 0.9375 + (0.75 - 0.4375) 0.75 + (0.9375 - 0.75) 0.4375 = 0.727
    assert "Hypervolume of the box between the two models: linear 0.727 (a straight line has 0.5)." in said
    assert "picked by 'maximize reading subject to reward >= 0.9 of aligned': method linear, toward_aligned 0.75." in said
    assert cli("sweep", str(file), "--output_path", str(tmp_path / "out"), "--quiet", "--resume", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    printed.pop("seconds")
    stored = json.loads((tmp_path / "out/report.json").read_text())
    stored.pop("seconds")
    assert printed == stored


@pytest.mark.exhaustive
def test_workers_make_no_difference(tmp_path: Path) -> None:
    file = made(tmp_path, "workers")
    for workers in ("1", "2"):
        assert cli("sweep", str(file), "--output_path", str(tmp_path / workers), "--quiet", "--workers", workers) == 0
    assert report(tmp_path / "1") == report(tmp_path / "2")
    for name in ("best.yaml", "model.safetensors"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


@pytest.mark.exhaustive
def test_a_kill_at_any_time_makes_no_difference(tmp_path: Path) -> None:
    file = made(tmp_path, "killed", seconds=0.2)
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    command = [sys.executable, "-m", "paddle_merge", "sweep", str(file), "--quiet", "--output_path"]
    subprocess.run([*command, str(tmp_path / "whole")], env=env, check=True, capture_output=True)
    out, kills = tmp_path / "out", 0
    for scored in (1, 3, 5):
        more = ["--resume", "--workers", "2"] if (out / "journal.jsonl").exists() else []
        process = subprocess.Popen(
            [*command, str(out), *more], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        journal = out / "journal.jsonl"
        while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") > scored):
            time.sleep(0.01)
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert kills == 3
    subprocess.run([*command, str(out), "--resume"], env=env, check=True, capture_output=True)
    assert report(out) == report(tmp_path / "whole")
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()


@pytest.mark.exhaustive
def test_evolve_picks_by_a_rule_too(tmp_path: Path) -> None:
    made(tmp_path, "evolved")
    file = tmp_path / "search.yaml"
    file.write_text(
        f"merge_method: task_arithmetic\nbase_model: {tmp_path}/pre\nmodels:\n- model: {tmp_path}/aligned\n"
        "  parameters: {weight: {search: [0, 1], step: 0.25}}\n"
        'search:\n  evaluate: {python: "scores_evolved:score"}\n  objectives: {reward: maximize, reading: maximize}\n'
        "  optimizer: random\n  evaluations: 30\n"
        f"  pick: maximize reading subject to reward >= 0.9 of {tmp_path}/aligned\n"
    )
    out = tmp_path / "out"
    assert cli("evolve", str(file), "--output_path", str(out), "--quiet") == 0
    assert np.allclose(read(out)["layers.1.w.weight"], 0.75)
    assert (
        cli(
            "evolve",
            str(file),
            "--output_path",
            str(out),
            "--quiet",
            "--resume",
            "--pick",
            "maximize reading subject to reward >= 7.5",
        )
        == 0
    )
    assert np.allclose(read(out)["layers.1.w.weight"], 0.5)


@pytest.mark.parametrize("command", ["sweep", "evolve"])
def test_bad_flags_are_refused_all_together(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(command, "--workers", "0") == 1
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "error: --workers 0 must be at least 1"
    assert len(said) == 3


def test_a_bad_rule_is_refused_with_all_else_that_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = made(tmp_path, "bad")
    (tmp_path / "out").write_text("")
    assert cli("sweep", str(file), "--output_path", str(tmp_path / "out"), "--pick", "best reading") == 1
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith(
        "error: --pick: 'best' stands in the rule where maximize or minimize should; it has the form max"
    )
    assert said[1] == f"error: --output_path {tmp_path}/out exists and is not a folder"
    assert len(said) == 2
