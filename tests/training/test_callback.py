"""What all callbacks share."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from paddle_merge.errors import ConfigError
from paddle_merge.training import AverageCallback, EmaCallback, MergeCallback, WindowCallback
from tests.support.trainers import Run, paddle, value


def test_importing_callbacks_imports_no_library() -> None:
    code = "import sys, paddle_merge.training; print({'paddle', 'paddlenlp', 'paddleformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


@pytest.mark.parametrize("callback", [AverageCallback(), EmaCallback(), WindowCallback(2), MergeCallback("reference")])
def test_events_that_a_callback_does_not_handle_do_nothing(callback: AverageCallback) -> None:
    """Also those that Trainers will have; other names are no attributes."""
    callback.on_something_new(SimpleNamespace(), SimpleNamespace(), None, model=None)
    with pytest.raises(AttributeError, match="has no attribute 'anything'"):
        callback.anything  # noqa: B018


@pytest.mark.parametrize("output", ["{run}", "../run", "{parent}", "{parent}/link"])
def test_a_run_is_not_replaced_by_its_output(tmp_path: Path, output: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("run")
    (tmp_path / "run" / "merge_config.json").write_text("{}")  # as if an earlier merge had written it
    callback = AverageCallback(output=output.format(run=tmp_path / "run", parent=tmp_path))
    with pytest.raises(ConfigError, match="is the run's output_dir, or contains it; give the name of a folder"):
        Run(tmp_path / "run").train([callback])


def test_folders_beside_the_output_stay(tmp_path: Path) -> None:
    for _ in range(2):
        (tmp_path / "average.old").mkdir(exist_ok=True)
        (tmp_path / "average.old" / "thesis.txt").write_text("")
        Run(tmp_path).train([AverageCallback(last=1)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["average", "average.old", "checkpoint-8"]
    assert (tmp_path / "average.old" / "thesis.txt").exists()


def test_what_appears_in_the_output_meanwhile_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Writing(AverageCallback):
        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            (tmp_path / "average").mkdir()
            (tmp_path / "average" / "thesis.txt").write_text("mine")
            super().on_train_end(args, state, control, **kwargs)

    Run(tmp_path).train([Writing()])
    assert [path.name for path in (tmp_path / "average").iterdir()] == ["thesis.txt"]
    assert "holds what is not of an earlier merge" in caplog.text
    assert "to repeat the merge by hand: python -m paddle_merge" in caplog.text


def test_an_output_that_is_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "average").symlink_to(tmp_path / "disk" / "average")
    for _ in range(2):
        Run(tmp_path / "run").train([AverageCallback(last=1)])
    assert (tmp_path / "run" / "average").is_symlink()
    assert value(tmp_path / "disk" / "average") == 8.0
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["average"]


def test_outputs_of_one_name_in_different_folders(tmp_path: Path) -> None:
    callbacks = [AverageCallback(2, output="a/x"), AverageCallback(3, output=Path("b/x")), EmaCallback(0.0, output="c/x/")]
    Run(tmp_path).train(callbacks)
    assert [value(tmp_path / name / "x") for name in "abc"] == [7.0, 6.0, 8.0]


@pytest.mark.parametrize("second", ["average", "average/ema", "../{run}/average"])
def test_two_callbacks_do_not_write_to_one_place(tmp_path: Path, second: str) -> None:
    first, other = AverageCallback(), EmaCallback(output=second.format(run=tmp_path.name))
    with pytest.raises(ConfigError, match="another AverageCallback of this training writes there"):
        Run(tmp_path).train([first, other])
    Run(tmp_path).train([other])  # in a training of its own


def test_all_ranks_learn_what_one_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paddle.distributed, "barrier", lambda: pytest.fail("nobody else comes"))
    told: list[Any] = []
    monkeypatch.setattr(paddle.distributed, "all_gather_object", lambda found, own: found.extend([*told, own]))
    told.append("the disk is full")
    with pytest.raises(ConfigError, match="in rank 0: the disk is full"):
        Run(tmp_path, rank=1, world_size=2).train([AverageCallback()])
    told.clear()
    monkeypatch.setattr(AverageCallback, "check_outputs", lambda *_: (_ for _ in ()).throw(OSError(5, "broken", "file")))
    with pytest.raises(ConfigError, match="AverageCallback: file: broken"):
        Run(tmp_path, world_size=2).train([AverageCallback()])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AverageCallback(output=3), "output must be a path, not 3"),  # type: ignore[arg-type]
        (lambda: AverageCallback(output="x/.."), "output must be the name of a folder"),
        (lambda: AverageCallback(last=True), "last must be a number of checkpoints, 1 or more, not True"),
        (lambda: AverageCallback(wait="x"), "wait must be a number, not 'x'"),  # type: ignore[arg-type]
        (lambda: EmaCallback("0.9"), "decay must be a number, not '0.9'"),  # type: ignore[arg-type]
        (lambda: WindowCallback((1, 2, 3)), r"with 1 <= first <= last, not \(1, 2, 3\)"),  # type: ignore[arg-type]
        (lambda: WindowCallback("10"), "steps must be a number of steps"),  # type: ignore[arg-type]
        (lambda: MergeCallback("x", "abc"), "toward_aligned must be a number, not 'abc'"),  # type: ignore[arg-type]
        (lambda: MergeCallback("x", foo=1, reserv_p=1), "'foo' is no setting of MergeCallback\n.*did you mean 'reserve_p'"),
        (lambda: MergeCallback("x", output_path="y"), "'output_path' is no setting of MergeCallback, which sets it itself"),
        (lambda: MergeCallback("x", output_layout="hf"), "'output_layout' is no setting of MergeCallback, which sets it"),
        (lambda: MergeCallback("x", dry_run=True), "'dry_run' is no setting of MergeCallback, which sets it itself"),
        (lambda: MergeCallback("x", sweep="y", seed=3, reserve_p=1), "how models are merged: leave out reserve_p, seed"),
        (lambda: MergeCallback(None), "reference must be a path, not None"),  # type: ignore[arg-type]
    ],
)
def test_settings_of_a_wrong_kind_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_the_card_says_what_the_output_is(tmp_path: Path) -> None:
    reference = tmp_path / "reference"
    Run(reference).train([], steps=2)
    callbacks = [AverageCallback(2), EmaCallback(0.5), WindowCallback((5, 8)), MergeCallback(reference / "checkpoint-2")]
    Run(tmp_path / "run").train(callbacks)
    cards = {name: (tmp_path / "run" / name / "README.md").read_text() for name in ("average", "ema", "window", "merged")}
    assert (
        "It is the average of a training's checkpoints after steps 6 (0.5), 8 (0.5), with these weights." in cards["average"]
    )
    assert "with decay 0.5 after each step, over 8 updates." in cards["ema"]
    assert "in a window of steps: 4 of them from 5 to 8, with decay uniform." in cards["window"]
    assert "checkpoint-8, merged with checkpoint-2 by linear, with 0.8 toward the training's result." in cards["merged"]
    for name, card in cards.items():
        assert card.startswith("---\nlibrary_name: paddlenlp\ntags:\n- merge\n- paddle_merge\n")
        assert not any(word in card for word in ("passthrough", "verify", "byte for byte", "recipe.yaml"))
        assert "How to load it" in card
        assert not (tmp_path / "run" / name / "merge_lock.json").exists()
