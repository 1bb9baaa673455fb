"""Average the checkpoints that real Trainers saved by `soup`, and open the average with from_pretrained.

test_training.py has the trainings; test_loaders.py says what these tests need.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.loaders.test_training import AVERAGE, CONFIG, UNIFIED, at_steps, folded, mean, pytestmark, run, same, weights
from tests.support.command_lines import cli

__all__ = ["pytestmark"]
# PaddleFormers' from_pretrained reads Hugging Face's layout; its distributed checkpoints have no config.json.
FLAGS = {"paddlenlp": (), "paddleformers": ("--output_layout", "hf")}


@pytest.mark.parametrize(
    ("library", "form", "lora"),
    [
        ("paddlenlp", "default", False),
        ("paddlenlp", "unified", True),
        ("paddleformers", "default", False),
        ("paddleformers", "default", True),
    ],
)
def test_checkpoints_of_a_run(
    library: str, form: str, lora: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, output, soup = tmp_path / "base", tmp_path / "run", tmp_path / "soup"
    settings: dict[str, Any] = UNIFIED[library] if form == "unified" else {}
    common = {"output": str(output), "config": CONFIG, "settings": settings, "lora": lora, "base": str(base)}
    train = {"do": "train", **common, "callbacks": [], "snapshots": str(tmp_path / "states.npz")}
    opened = {"do": "load", "config": CONFIG, "weights": str(tmp_path / "base.npz"), "folder": str(base)}
    run(library, tmp_path, [train, opened])
    flags = [*FLAGS[library], "--last", "4", "--decay", "1-sqrt", "--output_path", str(soup), "--quiet"]
    flags += ["--base_model_path", str(base)] if lora else ["--config_from", str(base)]
    status = cli("soup", str(output), *flags)
    if library == "paddleformers" and form == "default" and lora:  # base and factors are in one file, without a config
        assert status == 1
        assert "the mean of such factors isn't the mean of what they do" in capsys.readouterr().err
        return
    assert status == 0
    load = {"do": "load", "config": CONFIG, "weights": str(tmp_path / "soup.npz"), "folder": str(soup)}
    run(library, tmp_path, [load])
    states = at_steps(tmp_path / "states.npz")
    if lora:
        names = weights(tmp_path / "base.npz")
        states = {step: {name: folded(state, name) for name in names} for step, state in states.items()}
    same(weights(tmp_path / "soup.npz"), mean(states, AVERAGE))
