"""The average of the last checkpoints of a run."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from paddle_merge.errors import ConfigError
from paddle_merge.training import AverageCallback, EmaCallback
from tests.support.trainers import Run, paddle, value


def test_checkpoints_are_averaged_that_the_trainer_has_removed(tmp_path: Path) -> None:
    Run(tmp_path, limit=1).train([AverageCallback(last=3)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["average", "checkpoint-8"]
    assert value(tmp_path / "average") == 6.0  # of 4, 6 and 8
    held = {path.name for path in (tmp_path / "average").iterdir()}
    assert held >= {"config.json", "optimizer.pdopt", "trainer_state.json", "merge_config.json"}


def test_a_decay_weighs_checkpoints(tmp_path: Path) -> None:
    Run(tmp_path).train([AverageCallback(last=4, decay="1-sqrt")])
    # 0.5 * 2 + 0.207107 * 4 + 0.158919 * 6 + 0.133975 * 8
    assert value(tmp_path / "average") == pytest.approx(3.853738, abs=1e-5)


def test_a_run_that_was_killed_goes_on(tmp_path: Path) -> None:
    Run(tmp_path).train([AverageCallback(last=4)], kill=5)
    assert not (tmp_path / "average").exists()
    Run(tmp_path).train([AverageCallback(last=4)], start=4)
    assert value(tmp_path / "average") == 5.0  # of 2, 4, 6 and 8


def test_a_run_that_goes_on_from_an_earlier_checkpoint_forgets_later_ones(tmp_path: Path) -> None:
    Run(tmp_path, limit=9).train([AverageCallback(last=9)], kill=7)
    Run(tmp_path, limit=9).train([AverageCallback(last=9)], start=2, steps=4)
    assert value(tmp_path / "average") == 3.0  # of 2 and 4, not of 6


def test_what_another_run_left_is_not_averaged(tmp_path: Path) -> None:
    Run(tmp_path).train([AverageCallback(last=9)], kill=7)
    Run(tmp_path).train([AverageCallback(last=9)], steps=4)
    assert value(tmp_path / "average") == 3.0


def test_a_run_with_fewer_checkpoints_averages_those(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Run(tmp_path).train([AverageCallback(last=5)], steps=4)
    assert value(tmp_path / "average") == 3.0
    assert "the run has 2 checkpoints to average, not 5" in caplog.text


def test_a_list_of_factors_needs_as_many_checkpoints(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Run(tmp_path).train([AverageCallback(last=4, decay=[1, 0.5, 0.25, 0.25])])
    assert value(tmp_path / "average") == 0.5 * 2 + 0.25 * 4 + 0.25 * 8
    Run(tmp_path / "short").train([AverageCallback(last=4, decay=[1, 0.5, 0.25, 0.25])], steps=4)
    assert "decay has 4 numbers; 2 checkpoints need 2" in caplog.text
    assert not (tmp_path / "short" / "average").exists()


def test_one_checkpoint_is_copied(tmp_path: Path) -> None:
    Run(tmp_path).train([AverageCallback(last=1)])
    assert value(tmp_path / "average") == 8.0


def test_zero_cost_checkpoints_are_waited_for(tmp_path: Path) -> None:
    Run(tmp_path, enable_zero_cost_checkpoint=True).train([AverageCallback(last=4)])
    assert value(tmp_path / "average") == 5.0


def test_a_zero_cost_checkpoint_that_never_comes_is_an_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = Run(tmp_path, enable_zero_cost_checkpoint=True)
    run.write = lambda step: None  # type: ignore[method-assign]
    run.train([AverageCallback(last=4, wait=0)])
    assert not (tmp_path / "average").exists()
    assert "checkpoint-2, checkpoint-4, checkpoint-6, checkpoint-8 was not complete 0 s after the end" in caplog.text


def test_zero_cost_checkpoints_in_memory_only_are_not_waited_for(tmp_path: Path) -> None:
    class Flash(AverageCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            super().on_step_end(args, state, control, **kwargs)
            if state.global_step == 5:  # saved to the memory of the machine
                self.on_save(args, state, control, **kwargs)

    Run(tmp_path, enable_zero_cost_checkpoint=True).train([Flash(last=4, wait=0)])
    assert value(tmp_path / "average") == 5.0


def test_a_merge_that_fails_is_logged_with_the_command_that_repeats_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Damaging(AverageCallback):
        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            (tmp_path / ".average" / "checkpoint-6" / "model_state.pdparams").write_bytes(b"\x80\x04K")
            super().on_train_end(args, state, control, **kwargs)

    run = Run(tmp_path)
    run.train([AverageCallback(last=2)], steps=4)
    with caplog.at_level(logging.ERROR):
        run.train([Damaging(last=2)], start=4)
    assert "the training is not affected" in caplog.text
    assert f"python -m paddle_merge --model_path_list {tmp_path}/.average/checkpoint-6" in caplog.text
    assert value(tmp_path / "average") == 3.0  # the earlier one
    assert (tmp_path / ".average" / "checkpoint-8").is_dir()  # for the command
    assert not list(tmp_path.glob(".*.partial"))


def test_only_rank_0_writes_and_all_meet_equally_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    met: list[int] = []
    monkeypatch.setattr(paddle.distributed, "barrier", lambda: met.append(1))
    monkeypatch.setattr(paddle.distributed, "all_gather_object", lambda found, own: found.append(own))
    counts = []
    for rank, fails in ((0, False), (1, False), (0, True)):
        met.clear()
        callback = AverageCallback(last=2)
        run = Run(tmp_path / str(rank), rank=rank, world_size=2)
        if fails:
            monkeypatch.setattr(callback, "_keep", lambda *args: 1 / 0)
        run.train([callback])
        counts.append(len(met))
    assert len(set(counts)) == 1
    assert value(tmp_path / "0" / "average") == 7.0
    assert not (tmp_path / "1").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"last": 0}, "last must be a number of checkpoints, 1 or more, not 0"),
        ({"decay": "cosin"}, "did you mean 'cosine'"),
        ({"last": 5, "decay": [1, 0.5]}, "decay has 2 numbers; 5 checkpoints need 5"),
        ({"output": "checkpoint-average"}, "the Trainer takes folders called checkpoint-... for its own"),
        ({"output": ""}, "output must be the name of a folder"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AverageCallback(**settings)


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        ({"save_strategy": "no"}, {}, "save_strategy is no"),
        ({"unified_checkpoint_config": ["skip_save_model_weight"]}, {}, "skip_save_model_weight"),
        ({"save_sharded_model": True, "sharding_parallel_degree": 2}, {}, "sharding ranks save with save_sharded_model"),
        (  # PaddleFormers fills in the format
            {"save_sharded_model": True, "sharding_parallel_size": 2, "save_checkpoint_format": "sharding_io"},
            {},
            "sharding ranks save with save_sharded_model",
        ),
        ({}, {"base": "."}, "base is for models with LoRA"),
        ({"tensor_parallel_degree": 2, "lora": True}, {}, "each rank saves its slice of the adapter; give base"),
    ],
)
def test_runs_without_such_checkpoints_are_refused_before_the_first_step(
    tmp_path: Path, arguments: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    run = Run(tmp_path, **arguments)
    if arguments.get("lora"):
        run.model.lora_config = "of LoRA"  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=message):
        run.train([AverageCallback(**settings)])
    assert run.state.global_step == 0


@pytest.mark.parametrize(
    "arguments",
    [
        {"unified_checkpoint": False, "unified_checkpoint_config": "skip_save_model_weight"},
        {"save_sharded_model": True, "sharding_parallel_degree": 2, "should_save_sharding_stage1_model": False},
        {"save_sharded_model": True, "sharding_parallel_size": 2, "save_checkpoint_format": "flex_checkpoint"},
    ],
)
def test_options_without_effect_are_not_refused(tmp_path: Path, arguments: dict[str, Any]) -> None:
    Run(tmp_path, **arguments).train([AverageCallback(last=2)])
    assert value(tmp_path / "average") == 7


def test_a_file_system_that_sets_no_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: Any, **more: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("shutil.copystat", refused)
    Run(tmp_path).train([AverageCallback(last=2)])
    assert value(tmp_path / "average") == 7


def test_folders_of_others_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "average").mkdir()
    (tmp_path / "average" / "thesis.txt").write_text("")
    with pytest.raises(ConfigError, match="holds what is not of an earlier merge; give another name, or remove it"):
        Run(tmp_path).train([AverageCallback()])
    (tmp_path / "average" / "thesis.txt").unlink()
    for _ in range(2):  # an empty one, and one of an earlier run, may be
        Run(tmp_path).train([AverageCallback()])


def test_others_wait_as_long_as_rank_0_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a barrier, which gives up after a minute or so."""
    monkeypatch.setattr(paddle.distributed, "barrier", lambda: None)
    monkeypatch.setattr(paddle.distributed, "all_gather_object", lambda found, own: found.append(own))
    run = Run(tmp_path, rank=1, world_size=2)
    working = tmp_path / ".average.working"
    working.write_text("")
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 3:
            working.unlink()

    monkeypatch.setattr("paddle_merge.training.callback.time.sleep", sleep)
    run.train([AverageCallback()])
    assert len(waited) == 3
    lead = Run(tmp_path, world_size=2)
    lead.train([AverageCallback()])
    assert not working.exists()


def test_checkpoints_of_an_earlier_run_are_not_averaged(tmp_path: Path) -> None:
    Run(tmp_path, limit=9, save_steps=3).train([], steps=9)
    Run(tmp_path, limit=9, save_steps=4).train([AverageCallback(last=9)], kill=5)
    Run(tmp_path, limit=9, save_steps=4).train([AverageCallback(last=9)], start=4)
    assert value(tmp_path / "average") == 6.0  # of 4 and 8, not of 3 and 6


def test_another_run_that_goes_on_in_the_same_folder_begins_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Run(tmp_path).train([AverageCallback(last=9)], kill=5)
    run = Run(tmp_path)
    run.offset = 0.5  # the checkpoint of step 4 elsewhere has other weights
    run.train([AverageCallback(last=9)], start=4)
    assert value(tmp_path / "average") == 7.0  # of 6 and 8
    assert "holds no weights of the run that goes on from step 4" in caplog.text


def test_only_the_last_checkpoints_are_kept_when_a_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Run(tmp_path, limit=9).train([AverageCallback(last=2)], kill=7)
    kept: list[str] = []
    monkeypatch.setattr("paddle_merge.training.average.keep_weights", lambda source, target: kept.append(source))
    Run(tmp_path, limit=9).train([AverageCallback(last=3)], start=6, kill=7)
    assert kept == [str(tmp_path / "checkpoint-2")]  # 4 and 6 are there


def test_a_checkpoint_that_cannot_be_kept_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from paddle_merge.training import average

    keep = average.keep_weights

    def once(source: str, target: str) -> None:
        if source.endswith("checkpoint-6"):
            raise OSError(5, "Input/output error")
        keep(source, target)

    monkeypatch.setattr(average, "keep_weights", once)
    Run(tmp_path, limit=9).train([AverageCallback(last=3)])
    assert value(tmp_path / "average") == pytest.approx(14 / 3, abs=1e-6)  # of 2, 4 and 8
    assert "is not the average of all checkpoints: checkpoint-6 can't be kept ([Errno 5]" in caplog.text


def test_a_later_run_does_not_change_an_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """paddle.save writes into the files that are there, and links to them would show it."""
    monkeypatch.setattr("paddle_merge.training.checkpoints.SMALL", 0)
    Run(tmp_path, limit=9).train([AverageCallback(last=2)])
    before = (tmp_path / "average" / "optimizer.pdopt").read_bytes()
    with (tmp_path / "checkpoint-8" / "optimizer.pdopt").open("r+b") as stream:
        stream.write(b"changed")
    assert (tmp_path / "average" / "optimizer.pdopt").read_bytes() == before


def test_signals_of_an_earlier_run_do_not_complete_a_zero_cost_checkpoint(tmp_path: Path) -> None:
    earlier = Run(tmp_path)
    earlier.shift = 0.5
    earlier.train([], steps=8)
    for step in (2, 4, 6):
        earlier.write(step)
    run = Run(tmp_path, enable_zero_cost_checkpoint=True)
    run.train([AverageCallback(last=4)])
    assert value(tmp_path / "average") == 5.0  # not 5.5


def test_what_others_have_in_a_hidden_folder_stays(tmp_path: Path) -> None:
    for name in (".average", ".git"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("")
    Run(tmp_path).train([AverageCallback(last=2), EmaCallback(output="git")])
    assert [[path.name for path in (tmp_path / name).iterdir()] for name in (".average", ".git")] == [["thesis.txt"]] * 2
