"""Test the demo, from training to its table, and that merging visibly works there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paddle_merge.commands.demo import run as demo_run
from paddle_merge.commands.demo.run import PICTURE, run
from paddle_merge.methods.paddlenlp import METHODS
from tests.support import checkpoints


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, float]]]:
    folder = tmp_path_factory.mktemp("demo")
    return folder, run(str(folder), seed=0, quick=True)


@pytest.fixture(scope="module")
def hardly_trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, float]]]:
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_run, "EPOCHS_QUICK", (1, 1))
        return folder, run(str(folder), seed=0, quick=True)


def mean(row: dict[str, float]) -> float:
    return sum(row.values()) / len(row)


@pytest.mark.exhaustive
def test_merging_works(demo: tuple[Path, dict[str, dict[str, float]]]) -> None:
    """Compared within the run: training differs from machine to machine."""
    _, scores = demo
    base = mean(scores["base"])
    assert METHODS.keys() <= scores.keys()
    experts = {name: row for name, row in scores.items() if name.startswith("expert ")}
    assert len(experts) == 4
    for name, row in experts.items():
        assert row[name.removeprefix("expert ")] > scores["base"][name.removeprefix("expert ")] + 0.05
    for method in ("linear", "ties", "dare_ties", "della", "dare_linear", "della_linear"):
        assert mean(scores[method]) > base + 0.02, method
    assert mean(scores["ties"]) > mean(scores["linear"]) + 0.015
    assert mean(scores["ties"]) > max(mean(row) for row in experts.values())


@pytest.mark.exhaustive
def test_dare_needs_its_rescale_and_negation_forgets(demo: tuple[Path, dict[str, dict[str, float]]]) -> None:
    _, scores = demo
    place = "top left"
    assert scores[f"10% of {place}"][place] > scores[f"expert {place}"][place] - 0.05
    assert scores["10%, not rescaled"][place] < scores[f"10% of {place}"][place] - 0.05
    forgotten = scores[f"base minus {place}"]
    assert forgotten[place] < scores["base"][place] - 0.2
    assert forgotten["middle"] > scores["base"]["middle"] - 0.06


@pytest.mark.exhaustive
def test_it_leaves_real_checkpoints_and_a_picture(hardly_trained: tuple[Path, dict[str, dict[str, float]]]) -> None:
    folder, scores = hardly_trained
    assert METHODS.keys() <= scores.keys()
    assert (folder / PICTURE).read_bytes().startswith(b"\x89PNG")
    folders = [path for path in folder.iterdir() if path.is_dir()]
    assert len(folders) == len(scores)
    for path in folders:
        assert json.loads((path / "config.json").read_text())["architectures"]
        assert checkpoints.read(path)
    for source in ("base", "expert-top-left", "expert-top-right", "expert-bottom-left"):  # what configs/ names
        assert (folder / source / "model.safetensors").exists()
