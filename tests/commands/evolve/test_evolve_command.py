"""Test what `python -m paddle_merge evolve` prints."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from paddle_merge.commands.main import main
from paddle_merge.search import evolve
from tests.support.searches import workshop

SEARCH = """
evaluate: {python: "score:score"}
objectives: {loss: minimize}
evaluations: 18
seed: 1
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "score", raising=False)


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as exit:
        main(argv)
    out, err = capsys.readouterr()
    code = exit.value.code
    assert code is None or isinstance(code, int)
    return code or 0, out, err


@pytest.mark.exhaustive
def test_the_command_that_it_prints_repeats_the_merge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = workshop(tmp_path, SEARCH)
    code, out, err = run(capsys, "evolve", str(path), "--output_path", "the best")
    assert code == 0, err
    report = json.loads(Path("the best/report.json").read_text())
    for one in (*report["baselines"], report["best"]):
        assert f"{one['search']['metrics']['loss']:.4g}" in out
    assert "18 candidates by cma in" in out
    assert "the best/report.html shows the search" in out
    words = shlex.split(out.splitlines()[-1])
    assert words == ["python", "-m", "paddle_merge", "merge", "the best/best.yaml", "--output_path", "./again"]
    assert run(capsys, *words[3:])[0] == 0
    assert Path("again/model.safetensors").read_bytes() == Path("the best/model.safetensors").read_bytes()


@pytest.mark.exhaustive
def test_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = workshop(tmp_path, SEARCH.replace("18", "9"))
    code, out, _ = run(capsys, "evolve", str(path), "--output_path", "out", "--json", "--quiet")
    assert code == 0
    assert json.loads(out) == json.loads(Path("out/report.json").read_text())


def test_interrupted(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(evolve, "evolve", stopped)
    code, _, err = run(capsys, "evolve", str(workshop(tmp_path, SEARCH)), "--output_path", "out")
    assert code == 130
    assert err == "interrupted: nothing was scored yet\n"
    (tmp_path / "out").mkdir()
    (tmp_path / "out/journal.jsonl").write_text("")
    assert run(capsys, "evolve", "search.yaml", "--output_path", "out")[2] == "interrupted: --resume goes on from here\n"
