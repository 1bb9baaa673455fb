"""Test layer-shuffle: which layers are drawn, the recipe, and the merge."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import yaml

from paddle_merge.commands.layer_shuffle.draw import any_places, same_places, slices
from tests.support.checkpoints import read
from tests.support.command_lines import cli
from tests.support.names import not_utf8
from tests.support.recipes import model, models, q, up


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    model(tmp_path / "a", 1)
    model(tmp_path / "b", 2)
    return tmp_path


def test_draws_have_the_probabilities() -> None:
    """Of 4,000 draws with the weights 3 and 1, a quarter is the second model's; by chance 3000 +- 27, so 5 deviations."""
    drawn = [choice for choice, _ in same_places(4000, [3, 1], 5)]
    assert abs(drawn.count(0) - 3000) < 140
    assert drawn != [choice for choice, _ in same_places(4000, [3, 1], 6)]
    assert {choice for choice, _ in same_places(500, [0, 1, 0], 0)} == {1}
    numbers = [layer for _, layer in any_places([10], [400], 1, False)]
    assert len(numbers) == 4000
    assert max(abs(numbers.count(number) - 400) for number in range(10)) < 95  # 400 +- 19


def test_fractions_of_layers() -> None:
    """Of 8 and 5 layers, 0.5 and 0.7: 4 and 3.5, rounded down. Distinct ones are no layer twice."""
    drawn = any_places([8, 5], [0.5, 0.7], 3, False)
    assert sorted(choice for choice, _ in drawn) == [0] * 4 + [1] * 3
    assert len({*any_places([6, 6], [1, 1], 4, True)}) == 12
    assert any_places([6, 6], [1, 1], 4, True) != sorted(any_places([6, 6], [1, 1], 4, True))


def test_runs_become_slices() -> None:
    assert slices([(0, 0), (0, 1), (1, 2), (0, 3), (0, 3), (0, 4)]) == [(0, 0, 2), (1, 2, 3), (0, 3, 4), (0, 3, 5)]


def test_the_merge(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each layer is one of the models' with that number, as drawn; all else is a's. The recipe that was written gives it."""
    assert cli("layer-shuffle", "a", "b", "--seed", "3", "--output_path", "out", "--write_yaml", "r.yaml") == 0
    a, b = models("a", "b")
    out, drawn = read(Path("out")), [choice for choice, _ in same_places(4, [0.5, 0.5], 3)]
    assert set(drawn) == {0, 1}
    for number, choice in enumerate(drawn):
        for name in (q(number), up(number)):
            np.testing.assert_array_equal(out[name], (a, b)[choice][name])
    for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
        np.testing.assert_array_equal(out[name], a[name])
    assert out.keys() == a.keys()
    assert cli("merge", "r.yaml", "--output_path", "again") == 0
    assert Path("again/model.safetensors").read_bytes() == Path("out/model.safetensors").read_bytes()


def test_file_names_that_are_not_utf8(here: Path) -> None:
    name = not_utf8(here)
    os.rename("a", name)
    assert cli("layer-shuffle", name, "b", "--seed", "3", "--output_path", "out") == 0
    os.rename(name, "a")
    assert cli("layer-shuffle", "a", "b", "--seed", "3", "--output_path", "same") == 0
    assert Path("out/model.safetensors").read_bytes() == Path("same/model.safetensors").read_bytes()


def test_full_random(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model(here / "deep", 3, layers=6)
    arguments = ("--weight", "0.5", "1.5", "--full_random", "--seed", "1")
    assert cli("layer-shuffle", "a", "deep", *arguments, "--output_path", "out") == 0
    sources, out = models("a", "deep"), read(Path("out"))
    drawn = any_places([4, 6], [0.5, 1.5], 1, False)
    assert len(drawn) == 11
    for number, (choice, layer) in enumerate(drawn):
        np.testing.assert_array_equal(out[q(number)], sources[choice][q(layer)])
    assert q(11) not in out
    assert yaml.safe_load(Path("out/config.json").read_text())["num_hidden_layers"] == 11
    capsys.readouterr()
    assert cli("layer-shuffle", "a", "deep", *arguments, "--print_recipe") == 0
    parts = yaml.safe_load(capsys.readouterr().out)["slices"]
    ranges = [source["layer_range"] for part in parts for source in part["sources"]]
    assert sum(end - first for first, end in ranges) == 11
    assert not Path("shuffled").exists()


@pytest.mark.parametrize(
    ("words", "sentences"),
    [
        (["a"], ["give at least two models: python -m paddle_merge layer-shuffle ./a ./b --output_path ./shuffled"]),
        (
            ["a", "b", "--weight_list", "1", "-1", "2", "--distinct", "--write_yaml", "r.txt"],
            [
                "--weight_list has 3 numbers for 2 models",
                "--weight_list must be numbers from 0 on, not all 0",
                "--distinct has no effect without --full_random, which may take a layer twice",
                "--distinct takes no layer twice, so a weight, here 2, must be at most 1",
                "--write_yaml r.txt must end in .yaml",
            ],
        ),
        (["a", "deep"], ["the models have different numbers of layers: 4 in a, 6 in deep; --full_random takes any of them"]),
        (["a", "b", "--full_random", "--weight", "0.1", "0.1"], ["--weight_list gives the output 0 layers; it must"]),
        (["a", "b", "--full_random", "--weight", "1e20", "1"], ["--weight_list gives the output 400000000000000000004"]),
    ],
)
def test_mistakes(here: Path, words: list[str], sentences: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    model(here / "deep", 3, layers=6)
    assert cli("layer-shuffle", *words) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(sentences)
    assert all(line.startswith(f"error: {sentence}") for line, sentence in zip(lines, sentences, strict=True)), lines
