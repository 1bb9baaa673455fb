"""Test that only whole checkpoints and adapters are pushed."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from paddle_merge import CheckpointError, MergeConfig, merge
from paddle_merge.commands.push.checks import check
from paddle_merge.commands.push.tree import list_tree
from paddle_merge.run.output import flock
from tests.support.checkpoints import write

X = {"w": np.arange(12.0).reshape(3, 4), "v": np.arange(5.0)}


@pytest.fixture(scope="module")
def _merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("merged")
    for name in ("a", "b"):
        write(folder / name, X, config={"model_type": "llama"})
    merge(
        MergeConfig(
            model_path_list=[str(folder / "a"), str(folder / "b")], output_path=str(folder / "out"), max_shard_size="50B"
        )
    )
    return folder / "out"


@pytest.fixture
def folder(_merged: Path, tmp_path: Path) -> Path:
    """A copy of a merge's output."""
    (tmp_path / "out").mkdir()
    for path in _merged.iterdir():
        (tmp_path / "out" / path.name).write_bytes(path.read_bytes())
    return tmp_path / "out"


def problems(folder: Path, *exclude: str, public: bool = False) -> list[str]:
    """Return what check finds, without the folder's path."""
    try:
        check(list_tree(str(folder), exclude), public)
    except CheckpointError as error:
        return [problem.replace(f"{folder}/", "").replace(str(folder), "FOLDER") for problem in error.problems]
    return []


def test_the_output_of_a_merge(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is wrong. That its records name local folders is a warning for what everybody is going to see."""
    caplog.set_level(logging.INFO, "paddle_merge")
    assert problems(folder) == []
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert problems(folder, public=True) == []
    warning = caplog.records[-1]
    assert warning.levelname == "WARNING"
    local = json.loads((folder / "merge_config.json").read_text())["model_path_list"][0]
    assert warning.message == (
        f"merge_config.json, merge_lock.json name folders of this machine, such as {local}: whoever may read the repository"
        " sees them; --exclude merge_config.json merge_lock.json leaves out what no loader needs"
    )
    caplog.clear()
    assert problems(folder, "merge_*.json", public=True) == []
    assert caplog.messages == []


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[20] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda out: (out / "model-00002-of-00002.safetensors").unlink(), r"model-00002-of-00002.safetensors"),
        (lambda out: cut(out / "model-00001-of-00002.safetensors"), "has .* bytes, and the merge wrote"),
        (lambda out: flip(out / "model-00001-of-00002.safetensors"), "isn't what the merge wrote|header"),
        (lambda out: (out / "pytorch_model.bin").write_bytes(b""), "pytorch_model.bin: doesn't belong to this merge"),
        (lambda out: (out / "merge_lock.json").write_text("{}"), "merge_lock.json: is damaged"),
        (
            lambda out: (out / "model.safetensors.partial").write_bytes(b""),
            "FOLDER: a merge into it was stopped, and left model.safetensors.partial; finish it by the same merge with"
            " --resume, or begin again with --overwrite",
        ),
        (  # merge-lora can't go on
            lambda out: (out / "adapter_config.json.partial").write_bytes(b""),
            "FOLDER: a merge into it was stopped, and left adapter_config.json.partial; begin again with --overwrite",
        ),
        (lambda out: (out / "merge_journal-0.partial").write_bytes(b""), "left merge_journal-0.partial"),
        (lambda out: (out / "config.json.replaced").write_bytes(b""), "left config.json.replaced"),
    ],
)
def test_damage_is_found(folder: Path, damage: Callable[[Path], object], found: str) -> None:
    damage(folder)
    assert any(re.search(found, problem) for problem in problems(folder)), problems(folder)


def test_all_problems_are_reported_together(folder: Path) -> None:
    (folder / "merge_names.partial").write_text("[]")
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert len(problems(folder)) == 3  # what was left, what doesn't open, what isn't as recorded


def test_a_merge_that_is_running(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flock, "ENDING_SECONDS", 0.0)
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert problems(folder) == ["FOLDER: a merge is being written there; push it when that has ended"]
    finally:
        os.close(held)


def test_edited_files(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A changed config is a warning; so is none, and no card. Without the record there is nothing to differ from."""
    (folder / "config.json").write_text('{"model_type": "qwen2"}')
    assert problems(folder) == []
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == [
        f"{folder}/config.json: has changed since the merge, and merge_lock.json describes the file as it was"
    ]
    caplog.clear()
    for name in ("config.json", "README.md", "merge_lock.json", "merge_config.json"):
        (folder / name).unlink()
    assert problems(folder) == []
    assert caplog.messages == [
        f"{folder}: has no config.json, without which few libraries load a model",
        f"{folder}: has no README.md, the model card that hubs show",
    ]


def test_weights_that_are_left_out(folder: Path) -> None:
    assert problems(folder, "*-00001-*") == [
        "FOLDER: without model-00001-of-00002.safetensors (--exclude) its weights would not be whole at the hub"
    ]
    assert problems(folder, "*.json") == [
        "FOLDER: without model.safetensors.index.json (--exclude) its weights would not be whole at the hub"
    ]
    (folder / "pytorch_model.bin").write_bytes(b"of another model")
    assert problems(folder, "pytorch_model.bin") == []


def test_adapters_and_components(tmp_path: Path) -> None:
    adapter = write(tmp_path / "adapter", {"base_model.model.w.lora_A.weight": np.ones((1, 4))})
    (adapter / "model.safetensors").rename(adapter / "adapter_model.safetensors")
    (adapter / "config.json").unlink(missing_ok=True)
    assert problems(adapter) == [
        "FOLDER: has no model.safetensors, model_state.pdparams, pytorch_model.bin, and no index of"
        " one; it has adapter_model.safetensors: give the path of that file"
    ]
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 1}')
    assert problems(adapter) == []
    both = write(tmp_path / "both", X)
    (both / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 1}')
    assert problems(both) == []
    unet = write(tmp_path / "unet", X, prefix="diffusion_pytorch_model")
    assert problems(unet) == []
    (tmp_path / "empty").mkdir()
    assert problems(tmp_path / "empty") == [
        "FOLDER: has no model.safetensors, model_state.pdparams, pytorch_model.bin, and no index of one"
    ]
