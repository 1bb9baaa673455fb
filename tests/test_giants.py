"""Test that models larger than the disk can be planned, and a part of them merged."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.exhaustive
def test_it_runs(tmp_path: Path) -> None:
    """Four of 61 layers: 3 with an MLP of 18432, and one with 257 of 2048; of 29 GB only headers and norms are stored."""
    command = [sys.executable, "tools/giants.py", str(tmp_path), "--form", "bf16", "--layers", "4", "--layer", "0"]
    command += ["--no-merge"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    first, *plan = done.stdout.splitlines()
    assert first.startswith("3 models of 821 tensors each")
    (line,) = [line for line in plan if "experts.{0..255}.gate_proj.weight" in line]
    assert line.split(maxsplit=1)[1] == "256 x [2048, 7168] bfloat16: ties of 2 models and the base"
    assert plan[-1].startswith("| dry run of the whole merge |")
