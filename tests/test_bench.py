"""Test that the benchmark runs, and what it says of an earlier run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tools.bench import compare, table_of

ROOT = Path(__file__).parents[1]


@pytest.mark.exhaustive
def test_it_runs(tmp_path: Path) -> None:
    flags = ["--model", "small,tiny", "--folder", str(tmp_path), "--repeats", "1", "--methods", "slerp,dare_ties"]

    def bench(*more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "tools/bench.py", *flags, *more]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)

    done = bench("--json", str(tmp_path / "now.json"))
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "now.json").read_text())["rows"]
    pairs = [(row["model"], row["method"]) for row in rows]
    assert pairs == [("small", "slerp"), ("small", "dare_ties"), ("tiny", "slerp"), ("tiny", "dare_ties")]
    assert all(row["ratio"] > 0 and row["peak MB"] > 50 for row in rows)
    assert len([line for line in done.stdout.splitlines() if line.startswith("| ")]) == 2 + 4
    for row in rows:
        row["ratio"] /= 1000
    (tmp_path / "now.json").write_text(json.dumps({"rows": rows}))
    done = bench("--no-memory", "--against", str(tmp_path / "now.json"))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) >= 4


def row(method: str, ratio: float, **more: float) -> dict[str, object]:
    return {"model": "tiny", "folder": "f", "method": method, "ratio": ratio, **more}


def test_what_became_slower() -> None:
    """1.2 times is noise; 1.21 times isn't."""
    rows = [row("linear", 1.2), row("ties", 2.42), row("new", 9.0)]
    found = compare(rows, [row("linear", 1.0), row("ties", 2.0)])
    assert found == ["ties of tiny in f: 2.42 times its floor, which was 2.0 before"]
    assert [one["before"] for one in rows] == [1.0, 2.0, None]


def test_the_table_has_a_column_for_all_that_a_row_has() -> None:
    assert table_of([row("linear", 1.5), row("ties", 2.0, peak=7)]).splitlines() == [
        "| model | folder | method | ratio | peak |",
        "| --- | --- | --- | ---: | ---: |",
        "| tiny | f | linear | 1.5 |  |",
        "| tiny | f | ties | 2.0 | 7 |",
    ]
