"""Test the flags and files of expert-stats; tests/loaders/test_smaller_experts.py tests what it measures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paddle_merge import CheckpointError, ConfigError
from paddle_merge.checkpoints.expert_statistics import ExpertStatistics, LayerStatistics, read_statistics
from paddle_merge.commands.expert_stats import cli
from paddle_merge.commands.expert_stats.measure import texts_of


def refused(*argv: str) -> list[str]:
    with pytest.raises(ConfigError) as found:
        cli.main(argv)
    return found.value.problems


def test_flags_are_checked_together(tmp_path: Path) -> None:
    assert refused(str(tmp_path / "gone"), "--batch_size", "0", "--output", "stats.txt") == [
        "--batch_size 0 must be at least 1",
        f"{tmp_path}/gone: must be the folder of a model, with its config.json and tokenizer",
        "give the texts to measure on: --prompts texts.jsonl",
        "--output stats.txt must end in .json",
    ]


def test_texts(tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text('{"text": "a b"}\n\n{"prompt": "1 + 1", "completion": " = 2"}\n{"text": "x", "prompt": "not read"}\n')
    assert texts_of(str(file)) == ["a b", "1 + 1 = 2", "x"]
    file.write_text('{"text": "a"}\n{"content": "a"}\n[1]\n{"text": 3}\n')
    with pytest.raises(ConfigError, match=r'texts.jsonl:2: must be \{"text": "..."\}.* \(and 2 more lines\)'):
        texts_of(str(file))
    file.write_text("")
    with pytest.raises(ConfigError, match="has no texts"):
        texts_of(str(file))


def test_the_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    made = ExpertStatistics("m", "té.jsonl", 7, {3: LayerStatistics([2, 0], [0.1, 0.0], [3.0, 0.0], [1 / 3, 0.0])})
    file = tmp_path / "stats.json"
    file.write_text(made.to_json())
    assert read_statistics(str(file)) == made
    one = made.layers[3]
    assert [one.scores(by) for by in ("reap", "output_norm", "frequency")] == [[1 / 6, 0.0], [1.5, 0.0], [2, 0]]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"format": "x"}, "is no file of statistics of experts"),
        ({"version": 2}, "is of version 2, and this program reads version 1"),
        ({"layers": {}}, "has no layers"),
        ({"layers": {"0": {"count": [1]}}}, "layer '0' must have count, gate, norm, gated_norm"),
        ({"layers": {"x": {}}}, "layer 'x' must have"),
        ({"layers": {"0": {key: [-1] for key in ("count", "gate", "norm", "gated_norm")}}}, "a number from 0 on"),
    ],
)
def test_files_that_are_none(change: dict[str, object], sentence: str, tmp_path: Path) -> None:
    good = json.loads(ExpertStatistics("", "", 1, {0: LayerStatistics([1], [1], [1], [1])}).to_json())
    file = tmp_path / "stats.json"
    file.write_text(json.dumps({**good, **change}))
    with pytest.raises(CheckpointError, match=sentence):
        read_statistics(str(file))
