"""Test what commands do where standard output or the working directory fails."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from tests.support import checkpoints
from tests.support.names import not_utf8
from tests.support.pages import ROOT
from tests.support.sweeps import few

PRINTING = [
    "inspect a",
    "diff a a",
    "--model_path_list a a --dry_run",
    "--model_path_list a a --print_recipe",
    "diff --help",
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a model a."""
    checkpoints.write(tmp_path / "a", {"w": np.ones((3, 5), np.float32)})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(words: str, more: Mapping[str, str] = MappingProxyType({}), **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "", **more}
    command = [sys.executable, "-m", "paddle_merge", *words.split()]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, env=environment, timeout=120, **options)


@pytest.mark.parametrize("unbuffered", few(["", "1"]))
@pytest.mark.parametrize("words", PRINTING)
def test_a_reader_that_has_gone_ends_the_command_without_a_word(here: Path, words: str, unbuffered: str) -> None:
    """As `| head` does."""
    reading, writing = os.pipe()
    os.close(reading)
    done = run(words, {"PYTHONUNBUFFERED": unbuffered}, stdout=writing)
    os.close(writing)
    assert done.returncode == 1
    assert [line for line in done.stderr.splitlines() if not line.startswith("warning: a is given more than once")] == []


@pytest.mark.parametrize("words", PRINTING)
def test_output_that_cannot_be_written_is_an_error(here: Path, words: str) -> None:
    """As on a full disk."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))

    with open("out", "w") as file:
        done = run(words, stdout=file, preexec_fn=limit)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "error: standard output can't be written to (File too large)"
    assert "Traceback" not in done.stderr


def test_an_error_is_said_where_nobody_reads_the_output(here: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = run("inspect a ./nowhere", stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "error: ./nowhere: no such file or folder\n")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_names_that_the_output_cannot_encode_are_escaped(here: Path, encoding: str) -> None:
    os.rename("a", "模")
    done = run("inspect 模", {"PYTHONIOENCODING": f"{encoding}:strict"}, stdout=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == ("模" if encoding == "utf-8" else r"\u6a21")


def test_names_that_are_not_utf8_are_escaped(here: Path) -> None:
    name = not_utf8(here)
    os.rename("a", name)
    done = run(f"inspect {name}", {"PYTHONIOENCODING": "utf-8:strict"}, stdout=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == r"caf\udce9"


@pytest.mark.parametrize("words", ["--model_path_list {a} {a}", "extract-lora {a} --base_model_path {a} --output_path out"])
def test_a_working_directory_that_has_been_removed_is_said(here: Path, words: str) -> None:
    gone = here / "gone"
    gone.mkdir()
    words = words.format(a=here / "a")
    code = f"import os, sys; os.rmdir({str(gone)!r}); from paddle_merge.commands.main import main; main({words.split()})"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=gone, capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "error: the working directory has been removed; change to another one"
    assert "Traceback" not in done.stderr
