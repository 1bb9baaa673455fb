"""Test that a finished file is opened by the safetensors library before a merge counts as done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_merge import MergeConfig, OutputError, merge
from paddle_merge.run.output import last_look
from paddle_merge.run.worker import Worker
from tests.support.checkpoints import write

TENSORS = {"w": np.ones((3, 4)), "v": np.ones(5)}


@pytest.mark.parametrize("save_format", ["safetensors", "pdparams"])
@pytest.mark.parametrize("damage", [b"\xff" * 40, b""])
def test_a_header_that_was_damaged_meanwhile(
    tmp_path: Path, save_format: str, damage: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [str(write(tmp_path / name, TENSORS)) for name in "ab"]
    out, close = tmp_path / "out", Worker.close

    def damaged(self: Worker) -> None:
        close(self)
        (file,) = out.glob(f"model*.{save_format}.partial")
        content = file.read_bytes()
        file.write_bytes(damage + content[len(damage) :] if damage else content[:-1])

    monkeypatch.setattr(Worker, "close", damaged)
    with pytest.raises(OutputError, match="was written, but"):
        merge(MergeConfig(model_path_list=paths, output_path=str(out), save_format=save_format), progress=False)
    assert not list(out.glob("*")) or all(path.name.endswith(".partial") for path in out.glob("*"))


def test_a_header_of_another_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: Any = last_look._by_safetensors
    monkeypatch.setattr(last_look, "_by_safetensors", lambda path: {**found(path), "w": ("F16", (3, 4))})
    paths = [str(write(tmp_path / name, TENSORS)) for name in "ab"]
    with pytest.raises(OutputError, match="doesn't hold what the plan says of tensor 'w'"):
        merge(MergeConfig(model_path_list=paths, output_path=str(tmp_path / "out")), progress=False)
