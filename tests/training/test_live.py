"""Averages in memory: of a window of steps, and moving ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from paddle_merge.errors import CheckpointError, ConfigError
from paddle_merge.training import EmaCallback, WindowCallback
from tests.support.trainers import Run, paddle, value


def test_a_moving_average_has_no_share_of_the_beginning(tmp_path: Path) -> None:
    Run(tmp_path).train([EmaCallback(decay=0.5)], steps=4)
    # (0.5 * 4 + 0.25 * 3 + 0.125 * 2 + 0.0625 * 1) / 0.9375
    assert value(tmp_path / "ema") == pytest.approx(3.266667, abs=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-4", "ema"]
    assert (tmp_path / "ema" / "optimizer.pdopt").exists()


def test_every_second_step(tmp_path: Path) -> None:
    Run(tmp_path).train([EmaCallback(decay=0.5, every=2)], steps=5)
    assert value(tmp_path / "ema") == pytest.approx((0.5 * 4 + 0.25 * 2) / 0.75, abs=1e-6)


@pytest.mark.parametrize("device", ["cpu", "model"])
def test_a_moving_average_goes_on(tmp_path: Path, device: str) -> None:
    Run(tmp_path / "one").train([EmaCallback(decay=0.9, device=device)])
    Run(tmp_path / "two").train([EmaCallback(decay=0.9, device=device)], kill=5)
    Run(tmp_path / "two").train([EmaCallback(decay=0.9, device=device)], start=4)
    assert value(tmp_path / "two" / "ema") == value(tmp_path / "one" / "ema")


def test_a_moving_average_begins_where_none_was(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Run(tmp_path).train([], kill=5)
    Run(tmp_path).train([EmaCallback(decay=0.5)], start=4, steps=6)
    assert value(tmp_path / "ema") == pytest.approx((0.5 * 6 + 0.25 * 5) / 0.75, abs=1e-6)
    assert "the average begins anew after step 4: no average is stored in" in caplog.text


def test_a_moving_average_of_bfloat16_is_kept_in_float32(tmp_path: Path) -> None:
    run = Run(tmp_path, dtype="bfloat16")
    run.train([EmaCallback(decay=0.5)], steps=4)
    kept = paddle.load(str(tmp_path / "checkpoint-4" / ".ema" / "average.pdparams"))["llama.norm.weight"]
    assert kept.dtype == paddle.float32
    assert kept.numpy()[0] == pytest.approx(3.266667, abs=1e-6)
    assert paddle.load(str(tmp_path / "ema" / "model_state.pdparams"))["llama.norm.weight"].dtype == paddle.bfloat16


def test_a_window_at_the_end(tmp_path: Path) -> None:
    Run(tmp_path).train([WindowCallback(5, every=2)])
    assert value(tmp_path / "window") == 6.0  # of steps 4, 6, 8


def test_a_window_with_a_decay(tmp_path: Path) -> None:
    Run(tmp_path).train([WindowCallback((2, 5), decay="cosine", output="anywhere")])
    # 0.146447 * 2 + 0.353553 * 3 + 0.353553 * 4 + 0.146447 * 5
    assert value(tmp_path / "anywhere") == pytest.approx(3.5, abs=1e-5)


def test_a_window_goes_on(tmp_path: Path) -> None:
    Run(tmp_path).train([WindowCallback((3, 8))], kill=5)
    Run(tmp_path).train([WindowCallback((3, 8))], start=4)
    assert value(tmp_path / "window") == pytest.approx(5.5, abs=1e-6)


def test_a_window_that_begins_after_the_checkpoint_needs_nothing_from_it(tmp_path: Path) -> None:
    Run(tmp_path).train([WindowCallback((3, 4))], steps=4)
    Run(tmp_path).train([WindowCallback((5, 8))], start=4)
    assert value(tmp_path / "window") == pytest.approx(6.5, abs=1e-6)


def test_a_window_whose_beginning_is_lost_is_refused(tmp_path: Path) -> None:
    Run(tmp_path).train([], kill=5)
    with pytest.raises(ConfigError, match="the window begins with step 3, and the run goes on from step 4 without"):
        Run(tmp_path).train([WindowCallback((3, 8))], start=4)


def test_an_average_does_not_go_on_with_other_settings(tmp_path: Path) -> None:
    Run(tmp_path).train([EmaCallback(decay=0.9)], kill=5)
    with pytest.raises(CheckpointError, match=r"decay was 0.9, not 0.5; restore them, or give output another name"):
        Run(tmp_path).train([EmaCallback(decay=0.5)], start=4)


def test_a_run_without_checkpoints_gets_weights_for_from_pretrained(tmp_path: Path) -> None:
    Run(tmp_path, save_steps=100).train([EmaCallback(decay=0.0)])
    assert {path.name for path in (tmp_path / "ema").iterdir()} >= {"model.safetensors", "config.json"}


@pytest.mark.parametrize(
    ("arguments", "title"),
    [
        ({"tensor_parallel_degree": 2}, "tensor parallelism"),
        ({"pipeline_model_parallel_size": 2}, "pipeline parallelism"),
        ({"use_expert_parallel": True}, "expert parallelism"),
        ({"sharding": ["stage3"]}, "sharding stage 3"),
        ({"sharding_parallel_config": "enable_stage1_broadcast_overlap"}, "enable_stage1_broadcast_overlap"),
    ],
)
def test_runs_in_which_no_rank_has_all_weights_are_refused(tmp_path: Path, arguments: dict[str, Any], title: str) -> None:
    for callback in (EmaCallback(), WindowCallback(2)):
        with pytest.raises(ConfigError, match=f"with {title} there is none; AverageCallback"):
            Run(tmp_path, **arguments).train([callback])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EmaCallback(decay=1.0), "decay must be at least 0 and less than 1"),
        (lambda: EmaCallback(every=0), "every must be a number of steps"),
        (lambda: EmaCallback(device="gpu"), "device must be cpu, or model"),
        (lambda: WindowCallback(0), "steps must be a number of steps"),
        (lambda: WindowCallback((5, 4)), "with 1 <= first <= last"),
        (lambda: WindowCallback(4, decay="log"), "decay 'log' must be one of"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_window_must_fit_into_the_training(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the window of steps 9 doesn't fit into the 8 steps"):
        Run(tmp_path).train([WindowCallback(9)])
    with pytest.raises(ConfigError, match="set max_steps"):
        Run(tmp_path).train([WindowCallback(9)], steps=0)


def test_a_moving_average_goes_on_from_a_checkpoint_elsewhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Also where another run's checkpoint of the same step is in the folder."""
    Run(tmp_path / "one").train([EmaCallback(decay=0.9)])
    Run(tmp_path / "old").train([EmaCallback(decay=0.9)], kill=5)
    other = Run(tmp_path / "other")
    other.shift = 0.5
    other.train([EmaCallback(decay=0.9)], kill=5)
    named = str(tmp_path / "old" / "checkpoint-4")
    for folder in ("new", "other"):
        Run(tmp_path / folder, resume_from_checkpoint=named).train([EmaCallback(decay=0.9)], start=4)
        assert value(tmp_path / folder / "ema") == value(tmp_path / "one" / "ema")
    assert not caplog.text


def test_the_moving_average_of_another_run_is_not_continued(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Run(tmp_path).train([EmaCallback(decay=0.5)], kill=5)
    run = Run(tmp_path)
    run.offset = 0.5  # it goes on from a checkpoint elsewhere, or from an output, which the Trainer doesn't tell
    run.train([EmaCallback(decay=0.5)], start=4, steps=6)
    assert value(tmp_path / "ema") == pytest.approx((0.5 * 6 + 0.25 * 5) / 0.75, abs=1e-6)
    assert "checkpoint-4/.ema is of other weights than those that the run goes on from" in caplog.text
    assert "name it: TrainingArguments(resume_from_checkpoint=PATH)" in caplog.text


def test_checkpoints_of_an_earlier_run_give_no_optimizer(tmp_path: Path) -> None:
    Run(tmp_path, limit=9, save_steps=3).train([], steps=9)
    Run(tmp_path, limit=9, save_steps=4).train([EmaCallback(decay=0.5)], steps=9)
    assert json.loads((tmp_path / "ema" / "trainer_state.json").read_text()) == {"global_step": 8}


def test_a_window_whose_end_has_moved_says_what_works(tmp_path: Path) -> None:
    Run(tmp_path, limit=9).train([WindowCallback(5)])
    message = r"last was 8, not 10; restore them, as in WindowCallback\(steps=\(4, 8\), every=1\) with decay uniform,"
    message += " or go on from a checkpoint before step 6, or give a window that begins after step 8"
    with pytest.raises(CheckpointError, match=message):
        Run(tmp_path, limit=9).train([WindowCallback(5)], start=8, steps=10)
    for window, start, expected in (((4, 8), 8, 6.0), (2, 8, 9.5), (5, 4, 8.0)):
        Run(tmp_path, limit=9).train([WindowCallback(window)], start=start, steps=10)
        assert value(tmp_path / "window") == pytest.approx(expected, abs=1e-6)
        Run(tmp_path, limit=9).train([WindowCallback(5)])


@pytest.mark.parametrize("name", ["average.json", "average.pdparams"])
def test_a_damaged_average_is_named(tmp_path: Path, name: str) -> None:
    Run(tmp_path).train([EmaCallback()], kill=5)
    (tmp_path / "checkpoint-4" / ".ema" / name).write_text('{"step": 4, ')
    with pytest.raises(CheckpointError, match=rf"checkpoint-4/.ema/{name} can't be read \(.*; go on from another"):
        Run(tmp_path).train([EmaCallback()], start=4)


def test_an_average_that_cannot_be_stored_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("paddle_merge.training.live.LiveAverage.save", full)
    Run(tmp_path).train([EmaCallback(decay=0.5)], steps=4)
    assert value(tmp_path / "ema") == pytest.approx(3.266667, abs=1e-6)
    assert "EmaCallback: the average can't be stored in" in caplog.text
