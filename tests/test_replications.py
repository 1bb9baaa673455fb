"""Test the replications: their parts by hand, and that each runs."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from paddle_merge.backends.engine import import_paddle
from tests.support.command_lines import in_app

CLAIMS = ("negation", "dare", "ties", "wsm", "expo", "tax")


@pytest.fixture(scope="module")
def tool() -> Any:
    """Return the script, which lets its modules be imported too."""
    import_paddle()  # without its warnings
    return importlib.import_module("tools.replications")


def test_a_text_is_encoded_and_decoded(tool: Any) -> None:
    from claims.language import CHARACTERS, decoded, encoded

    tokens = encoded("a ~\n\té")
    assert tokens.tolist() == [66, 1, 95, 0, 1, 32]  # a tab becomes a space, what isn't ASCII a question mark
    assert decoded(tokens) == "a ~\n ?"
    assert tokens.max() < CHARACTERS


def test_a_reward_counts_long_words_once_and_only_if_they_exist(tool: Any) -> None:
    assert "statement" in tool.expo.long_words()
    assert tool.expo.reward("statement a statement statemend ") == pytest.approx(100 * 9 / tool.expo.ANSWER)
    assert tool.expo.reward("a statement") == 0  # it may be cut off
    assert tool.expo.reward("a statement.") == pytest.approx(100 * 9 / tool.expo.ANSWER)


def test_a_cache_changes_no_logits(tool: Any) -> None:
    import paddle
    import tiny_llama

    weights = tiny_llama.new(0, words=12, width=8, depth=2, inner=10)
    tokens = paddle.to_tensor(np.random.default_rng(0).integers(12, size=(3, 7)))
    with paddle.no_grad():
        whole = tiny_llama.logits(weights, tokens, 2).numpy()
        cache: list[Any] = []
        parts = [tiny_llama.logits(weights, tokens[:, a:b], 2, cache).numpy() for a, b in ((0, 4), (4, 5), (5, 7))]
    np.testing.assert_allclose(np.concatenate(parts, 1), whole, atol=1e-6)


def test_training_goes_back_to_an_earlier_state(tool: Any) -> None:
    """What follows is what followed the first time: weights, moments of Adam and sequences are as they were."""
    import tiny_llama
    from claims.language import CHARACTERS, HEADS, Training, texts

    weights = tiny_llama.new(0, CHARACTERS, 8 * HEADS, 1, 8)
    training = Training(weights, texts()["prose"][0], 2, np.random.default_rng(0))
    for _ in range(3):
        training.step(1e-2)
    before, ends = training.state(), []
    for _ in range(2):
        training.restore(before)
        for _ in range(3):
            training.step(1e-2)
        ends.append({name: value.numpy() for name, value in weights.items()})
    assert all((ends[0][name] == ends[1][name]).all() for name in weights)
    assert not np.array_equal(ends[0]["lm_head.weight"], before[0]["lm_head.weight"].numpy())


@pytest.mark.parametrize(("allowed", "expected"), [(0.0, 0.0), (0.25, 0.2), (1.0, 1.0)])
def test_the_largest_weight_is_that_before_the_first_that_is_not_allowed(tool: Any, allowed: float, expected: float) -> None:
    assert tool.negation.largest(lambda weight: weight <= allowed or weight == 0.9) == expected


def test_digits_are_placed_on_pages(tool: Any) -> None:
    from claims.digits import TASKS

    image = np.arange(1, 65, dtype=np.float32).reshape(1, 8, 8)
    for number, (row, column) in enumerate([(1, 1), (1, 0), (1, 2), (0, 1)]):
        pages, labels = TASKS["places"][number].of(image, np.array([7]))
        page = pages.reshape(24, 24)
        assert (page[8 * row : 8 * row + 8, 8 * column : 8 * column + 8] == image[0]).all()
        assert (page > 0).sum() == 64
        assert labels.tolist() == [7]


@pytest.fixture(scope="module")
def run(tool: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tool.Run(tmp_path_factory.mktemp("replications"), 0, tool.QUICK)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", CLAIMS)
def test_every_claim_runs(tool: Any, name: str, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With networks that have learned next to nothing, and fewer points: its table has all rows, its picture is drawn."""
    monkeypatch.setattr(tool.dare, "RATES", tool.dare.SHOWN)
    monkeypatch.setattr(tool.ties, "SCALES", (0.3,))
    monkeypatch.setattr(tool.ties, "LAMBDAS", (1.0,))
    monkeypatch.setattr(tool.negation, "SHOWN", (-1.0, 1.0))
    monkeypatch.setattr(tool.wsm, "COUNTS", (5, 11, 21))
    assert tuple(tool.CLAIMS) == CLAIMS
    claim = tool.CLAIMS[name]
    found = tool.of_seed([name], run)[name]
    assert all(np.isfinite(value) for value in found.values())
    numbers = {key: [value] * 3 for key, value in found.items()}
    lines = tool.report(claim, numbers).splitlines()
    rows = [line for line in lines if line.startswith("| ")]
    assert [row.split(" | ")[0] for row in rows[2:]] == [f"| {row.title}" for row in claim.rows.values()]
    assert {row.count(" | ") for row in rows[2:]} == {5}
    assert sum("grees: " in line or "DOES NOT AGREE: " in line for line in lines) == len(claim.findings(numbers))
    tool.picture(claim, numbers, run.folder / f"{name}.png")
    assert (run.folder / f"{name}.png").read_bytes()[1:4] == b"PNG"


@pytest.mark.parametrize(("argv", "problem"), [(["tis"], "tis"), (["ties", "--output", "full"], "full")])
def test_what_cannot_be_done_is_said_before_anything_is_trained(
    tool: Any, argv: list[str], problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(in_app(tool.main), argv)
    assert result.exit_code == 2
    assert problem in result.output
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "file"]
