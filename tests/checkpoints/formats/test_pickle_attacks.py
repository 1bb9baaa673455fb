"""Test published attacks on pickle loaders and scanners: each is refused in a sentence, and none of its code runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paddle_merge import CheckpointError
from paddle_merge.checkpoints.adapters import open_adapter
from paddle_merge.checkpoints.open import open_checkpoint
from tests.support import attacks
from tests.support.sweeps import every


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where an attack that ran would leave its canary, and have to be."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lora_config.json").write_text(json.dumps({"r": 1, "lora_alpha": 1}))
    return tmp_path


def refused(folder: Path, file: str, content: bytes, open_it: object = open_checkpoint) -> None:
    before = sorted(folder.iterdir())
    (folder / file).write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        open_it(str(folder))  # type: ignore[operator]
    (folder / file).unlink()
    assert sorted(folder.iterdir()) == before
    assert caught.value.problems
    assert all(str(folder) in sentence and len(sentence) < 1000 for sentence in caught.value.problems)


@pytest.mark.parametrize("label", every(attacks.VALUES, 4))
def test_code_is_refused_wherever_it_stands(folder: Path, label: str) -> None:
    for content in attacks.pickles(attacks.VALUES[label]).values():
        refused(folder, "model_state.pdparams", content)
        refused(folder, "lora_model_state.pdparams", content, open_adapter)
        refused(folder, "0.metadata", content)
        for archive in attacks.archives(content).values():
            refused(folder, "pytorch_model.bin", archive)


@pytest.mark.parametrize("label", attacks.python_pickles())
def test_code_that_python_pickled_is_refused(folder: Path, label: str) -> None:
    content = attacks.python_pickles()[label]
    for file in ("model_state.pdparams", "pytorch_model.bin", "model.safetensors", "0.metadata"):
        refused(folder, file, content)
    refused(folder, "pytorch_model.bin", attacks.archives(content)["one"])
