"""The merge of a training's result with a reference model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_merge.errors import ConfigError
from paddle_merge.training import MergeCallback
from tests.support.checkpoints import write
from tests.support.trainers import SHAPES, Run, value, values


@pytest.fixture
def reference(tmp_path: Path) -> str:
    """A model all of whose weights are 2."""
    Run(tmp_path / "reference").train([], steps=2)
    return str(tmp_path / "reference" / "checkpoint-2")


@pytest.mark.parametrize(("toward", "expected"), [(0.0, 2.0), (0.7, 6.2), (1.0, 8.0), (1.3, 9.8)])
def test_a_point_between_the_two_and_beyond(reference: str, tmp_path: Path, toward: float, expected: float) -> None:
    Run(tmp_path / "run").train([MergeCallback(reference, toward)])
    assert value(tmp_path / "run" / "merged") == pytest.approx(expected, abs=1e-6)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["checkpoint-8", "merged"]
    assert (tmp_path / "run" / "merged" / "optimizer.pdopt").exists()


def test_lines_keeps_the_last_layer(reference: str, tmp_path: Path) -> None:
    Run(tmp_path / "run").train([MergeCallback(reference, 0.5, "lines")])
    merged = values(tmp_path / "run" / "merged")
    assert {float(number) for number in np.unique(merged["llama.embed_tokens.weight"])} == {5.0}


def test_slerp_of_parallel_weights_is_linear(reference: str, tmp_path: Path) -> None:
    Run(tmp_path / "run").train([MergeCallback(reference, 0.5, "slerp")])
    assert value(tmp_path / "run" / "merged") == pytest.approx(5.0, abs=1e-5)


def test_every_other_method_takes_the_weight_and_its_parameters(reference: str, tmp_path: Path) -> None:
    Run(tmp_path / "run").train([MergeCallback(reference, 0.5, "ties", reserve_p=1.0, rescale=False)])
    assert value(tmp_path / "run" / "merged") == pytest.approx(5.0, abs=1e-6)


def test_the_best_checkpoint_is_merged_where_the_trainer_loads_it(reference: str, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", limit=9, load_best_model_at_end=True)
    run.state.best_model_checkpoint = str(tmp_path / "run" / "checkpoint-4")
    run.train([MergeCallback(reference, 1.0)])
    assert value(tmp_path / "run" / "merged") == 4.0


def test_a_training_that_ends_between_checkpoints_says_which_one_is_merged(
    reference: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Run(tmp_path / "run").train([MergeCallback(reference, 1.0)], steps=7)
    assert value(tmp_path / "run" / "merged") == 6.0
    assert "the training ended at step 7" in caplog.text


def test_a_reference_that_does_not_fit_is_logged(reference: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "other", {name: np.ones((3, *shape)) for name, shape in SHAPES.items()})
    Run(tmp_path / "run").train([MergeCallback(str(tmp_path / "other"))])
    assert not (tmp_path / "run" / "merged").exists()
    assert f"python -m paddle_merge {tmp_path}/run/merged.yaml --config_from" in caplog.text
    assert "task_arithmetic" in (tmp_path / "run" / "merged.yaml").read_text()


@pytest.mark.exhaustive
def test_the_point_that_a_sweep_picks(reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scorer_of_training.py").write_text(
        "def score(candidate, split, seed, samples):\n"
        "    number = float(candidate.state_dict()['llama.norm.weight'][0])\n"
        "    return {'reward': number, 'skill': -number}\n"
    )
    monkeypatch.delitem(sys.modules, "scorer_of_training", raising=False)
    (tmp_path / "sweep.yaml").write_text(
        "sweep:\n"
        "  toward_aligned: 0:1:0.25\n"
        '  evaluate: {python: "scorer_of_training:score"}\n'
        "  objectives: {reward: maximize, skill: maximize}\n"
        "  pick: maximize skill subject to reward >= 0.75 of aligned\n"
    )
    Run(tmp_path / "a+b").train([MergeCallback(reference, sweep=str(tmp_path / "sweep.yaml"))])
    assert value(tmp_path / "a+b" / "merged") == pytest.approx(6.5, abs=1e-6)  # 0.75: 2 + 0.75 * 6; 0.5 gives 5 < 6
    assert (tmp_path / "a+b" / "merged-sweep" / "report.json").exists()
    assert not list(tmp_path.glob(".sweep-*"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "tiess"}, "did you mean 'ties'"),
        ({"method": "ties", "reserve": 1}, "reserve"),
        ({"toward_aligned": float("nan")}, "finite|NaN|nan"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, TypeError), match=message):
        MergeCallback("reference", **settings)


def test_a_run_that_saves_no_weights_is_refused(reference: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="MergeCallback needs the weights of checkpoints"):
        Run(tmp_path, unified_checkpoint_config=["skip_save_model_weight"]).train([MergeCallback(reference)])


def test_a_missing_reference_is_refused_before_the_first_step(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with pytest.raises(ConfigError, match="reference nowhere: no such folder"):
        run.train([MergeCallback("nowhere")])
    assert run.state.global_step == 0


def test_a_sweep_file_is_read_before_the_training(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be read"):
        MergeCallback("reference", sweep=str(tmp_path / "missing.yaml"))
    (tmp_path / "other.yaml").write_text("search: {}")
    with pytest.raises(ConfigError, match="has no section sweep"):
        MergeCallback("reference", sweep=str(tmp_path / "other.yaml"))


def test_the_checkpoint_of_an_earlier_run_is_not_merged(reference: str, tmp_path: Path) -> None:
    Run(tmp_path / "run", limit=9, save_steps=3).train([], steps=9)
    Run(tmp_path / "run", limit=9, save_steps=4).train([MergeCallback(reference, 1.0)], steps=9)
    assert value(tmp_path / "run" / "merged") == 8.0


def test_the_best_checkpoint_of_a_run_that_was_moved(
    reference: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(tmp_path / "run", limit=9, load_best_model_at_end=True)
    run.state.best_model_checkpoint = "/elsewhere/run/checkpoint-4"
    run.train([MergeCallback(reference, 1.0)])
    assert value(tmp_path / "run" / "merged") == 4.0
    run.state.best_model_checkpoint = "/elsewhere/run/checkpoint-5"
    run.train([MergeCallback(reference, 1.0)])
    assert "the best checkpoint, /elsewhere/run/checkpoint-5, isn't there" in caplog.text


def test_a_reference_is_not_replaced(reference: str, tmp_path: Path) -> None:
    Run(tmp_path / "run").train([MergeCallback(reference)])
    merged = tmp_path / "run" / "merged"
    with pytest.raises(ConfigError, match="is the reference, or contains it; give another name"):
        Run(tmp_path / "run").train([MergeCallback(merged)])


SWEEP = (
    "sweep:\n"
    "  toward_aligned: 0:1:0.25\n"
    '  evaluate: {python: "scorer_of_training:score"}\n'
    "  objectives: {reward: maximize, skill: maximize}\n"
)


def test_what_a_sweep_needs_is_checked_before_the_training(
    reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "scorer_of_training", raising=False)
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    callback = MergeCallback(reference, sweep=tmp_path / "sweep.yaml")
    with pytest.raises(ConfigError, match=f"{tmp_path}/sweep.yaml.*scorer_of_training"):
        Run(tmp_path / "run").train([callback])
    (tmp_path / "scorer_of_training.py").write_text("def score(candidate, split, seed, samples):\n    return {}\n")
    monkeypatch.setattr("paddle_merge.search.sweep.NEEDS", ("moocore_of_nobody",))
    with pytest.raises(ConfigError, match="a sweep needs moocore_of_nobody"):
        Run(tmp_path / "run").train([callback])
    assert not list(tmp_path.glob(".sweep-*"))


def test_a_folder_beside_a_sweep_is_not_replaced(reference: str, tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    (tmp_path / "run" / "merged-sweep").mkdir(parents=True)
    (tmp_path / "run" / "merged-sweep" / "thesis.txt").write_text("")
    with pytest.raises(ConfigError, match="merged-sweep holds what is not of an earlier merge"):
        Run(tmp_path / "run").train([MergeCallback(reference, sweep=tmp_path / "sweep.yaml")])


def test_problems_of_a_sweep_file_name_that_file(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(SWEEP.replace("maximize", "most"))
    with pytest.raises(ConfigError) as caught:
        MergeCallback("reference", sweep=tmp_path / "sweep.yaml")
    assert f"{tmp_path}/sweep.yaml" in str(caught.value)
    assert ".sweep-" not in str(caught.value)
