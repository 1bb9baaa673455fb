"""Test the warning of sign election between models that changed few elements."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_merge import MergeConfig, merge
from tests.support.checkpoints import write

SHAPE = (256, 160)  # more than a sample takes


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a base of four matrices; models that changed 20 % (rl1, rl2) and all (sft) of the elements; and one that
    changed one matrix as a whole (lora)."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    base = {name: generator.standard_normal(SHAPE) for name in "abcd"}
    write(tmp_path / "base", base, "bfloat16")
    for name, share in (("rl1", 0.2), ("rl2", 0.2), ("sft", 1.0)):
        changed = {key: x + 0.5 * (generator.random(SHAPE) < share) for key, x in base.items()}
        write(tmp_path / name, changed, "bfloat16")
    write(tmp_path / "lora", base | {"b": base["b"] + 0.5}, "bfloat16")
    write(tmp_path / "wide", {name: x + 0.5 * (generator.random(SHAPE) < 0.2) for name, x in base.items()}, "float32")
    return tmp_path


@pytest.mark.parametrize(
    ("models", "fields", "warned"),
    [
        (["rl1", "rl2"], {"merge_method": "ties"}, ["rl1", "rl2"]),
        (["rl1", "sft", "rl2"], {"merge_method": "ties"}, ["rl1", "rl2"]),
        (["rl1", "rl2"], {"merge_method": "dare_ties"}, ["rl1", "rl2"]),
        (["rl1", "rl2"], {"merge_method": "breadcrumbs_ties"}, ["rl1", "rl2"]),
        (["rl1", "sft"], {"merge_method": "ties"}, []),
        (["lora", "rl1"], {"merge_method": "ties"}, []),  # an adapter changes few tensors, and all of each
        (["rl1", "rl2"], {"merge_method": "ram"}, []),
        (["rl1", "rl2"], {"merge_method": "dare_linear"}, []),
        (["rl1", "rl2"], {"merge_method": "ties", "base_model_path": None}, []),
        (["rl1", "wide"], {"merge_method": "ties", "out_dtype": "float32"}, []),  # other bits, which say nothing
        (["base", "rl1"], {"merge_method": "ties"}, []),  # nothing changed isn't few
    ],
)
def test_who_is_warned(here: Path, models: list[str], fields: dict[str, Any], warned: list[str], caplog: Any) -> None:
    given = {"base_model_path": "base", "model_path_list": models, "output_path": "out", **fields}
    merge(MergeConfig(**given), progress=False)
    said = [message for message in caplog.messages if "ram is made for them" in message]
    assert len(said) == (1 if warned else 0)
    for name in warned:
        assert f"{name} (20%)" in said[0]
    assert not any("sft" in message for message in said)


def test_a_dry_run_says_so_too(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = MergeConfig(merge_method="ties", base_model_path="base", model_path_list=["rl1", "rl2"], output_path="out")
    config.dry_run = True
    merge(config, progress=False)
    assert "rl1 (20%), rl2 (20%) changed few elements of the base model" in caplog.text


def test_an_earlier_stage_is_looked_at(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe = """\
name: first
merge_method: ties
base_model: base
models: [{model: rl1, parameters: {weight: 1}}, {model: rl2, parameters: {weight: 1}}]
---
merge_method: linear
models: [{model: first, parameters: {weight: 1}}, {model: sft, parameters: {weight: 1}}]
"""
    merge(MergeConfig(recipe_yaml=recipe, output_path="out"), progress=False)
    (said,) = [message for message in caplog.messages if "ram is made for them" in message]
    assert "rl1 (20%), rl2 (20%) changed few elements" in said


def test_small_models_say_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = np.zeros((100, 100))
    write(tmp_path / "base", {"w": base})
    for number in range(2):
        base[number] = 1
        write(tmp_path / f"m{number}", {"w": base})
    models = [str(tmp_path / f"m{number}") for number in range(2)]
    config = MergeConfig(merge_method="ties", base_model_path=str(tmp_path / "base"), model_path_list=models)
    config.output_path = str(tmp_path / "out")
    merge(config, progress=False)
    assert "ram is made" not in caplog.text
