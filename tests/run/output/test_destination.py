"""Test the end of a merge, when files get their names: after any fault or interruption, one complete merge is there."""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_merge import MergeConfig, OutputError, WorkError, merge
from tests.support.checkpoints import write


def overwriting(tmp_path: Path) -> MergeConfig:
    """A finished merge, and the config of another into the same folder."""
    for name, value in (("a", 1.0), ("b", 3.0), ("c", 7.0)):
        write(tmp_path / name, {"w": np.full((3, 5), value)})
    out = str(tmp_path / "out")
    merge(MergeConfig(model_path_list=[str(tmp_path / "a"), str(tmp_path / "b")], output_path=out))
    return MergeConfig(model_path_list=[str(tmp_path / "a"), str(tmp_path / "c")], output_path=out, overwrite=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("number", range(12))
def test_a_rename_that_fails_brings_the_earlier_merge_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    config = overwriting(tmp_path)
    before = contents(tmp_path / "out")
    real, calls = os.replace, iter(range(100))

    def replace(source: str, target: str) -> None:
        if next(calls) == number:
            raise OSError(errno.EIO, "Input/output error")
        real(source, target)

    monkeypatch.setattr("paddle_merge.run.output.writer.os.replace", replace)
    try:
        merge(config)
    except OutputError:
        assert contents(tmp_path / "out") == before
    else:
        assert number >= 8  # four files aside, four in place
        assert contents(tmp_path / "out").keys() == before.keys()


@pytest.mark.parametrize("number", [errno.EIO, errno.EINVAL])
def test_a_folder_that_is_not_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Where that fails, the earlier merge stays; where the file system has no such thing, it is left out."""
    config = overwriting(tmp_path)
    before = contents(tmp_path / "out")
    real = os.fsync

    def fsync(file: int) -> None:
        if stat.S_ISDIR(os.fstat(file).st_mode):
            raise OSError(number, os.strerror(number))
        real(file)

    monkeypatch.setattr("paddle_merge.run.output.writer.os.fsync", fsync)
    if number == errno.EINVAL:
        merge(config)
        assert contents(tmp_path / "out") != before
        return
    with pytest.raises(OutputError, match="Input/output error"):
        merge(config)
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("number", range(12))
def test_signals_wait_for_the_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """A whole merge stands, the new one or the earlier one, whenever they come and however often."""
    config = overwriting(tmp_path)
    before = contents(tmp_path / "out")
    calls: list[str] = []

    def signalled(name: str, function: Any) -> Any:
        def wrapped(*args: Any) -> Any:
            if name == "replace" or calls:  # from the first rename on
                calls.append(name)
            if len(calls) > number:
                signal.raise_signal(signal.SIGINT)
            return function(*args)

        return wrapped

    with monkeypatch.context() as patched:
        for name in ("replace", "unlink", "rmdir"):
            patched.setattr(f"paddle_merge.run.output.writer.os.{name}", signalled(name, getattr(os, name)))
        merge(config)
    after = contents(tmp_path / "out")
    assert after.keys() == before.keys()
    assert after["model.safetensors"] != before["model.safetensors"]


def test_signals_wait_while_a_failed_merge_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = overwriting(tmp_path)
    before = contents(tmp_path / "out")
    real = os.unlink

    def unlink(path: str) -> None:
        signal.raise_signal(signal.SIGINT)
        real(path)

    def fail(*_: Any) -> None:
        raise WorkError("no")

    monkeypatch.setattr("paddle_merge.run.output.writer.os.unlink", unlink)
    monkeypatch.setattr("paddle_merge.run.merge.notice", fail)
    with pytest.raises(KeyboardInterrupt):
        merge(config)
    assert contents(tmp_path / "out") == before


def test_a_card_that_no_merge_wrote_is_not_replaced(tmp_path: Path) -> None:
    config = overwriting(tmp_path)
    (tmp_path / "out" / "README.md").write_text("edited\n")
    with pytest.raises(OutputError, match=r"pass --overwrite to replace the weights and README\.md in it"):
        merge(dataclasses.replace(config, overwrite=False))
    merge(config)
    for name in ("merge_config.json", "merge_lock.json"):
        (tmp_path / "out" / name).unlink()
    (tmp_path / "out" / "README.md").write_text("mine\n")
    with pytest.raises(OutputError, match=r"holds a README\.md that no merge wrote; move it away, or choose another folder"):
        merge(config)
    assert (tmp_path / "out" / "README.md").read_text() == "mine\n"
