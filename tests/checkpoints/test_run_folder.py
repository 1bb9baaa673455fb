"""The checkpoints of a run, and what lies beside their weights."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from paddle_merge.checkpoints.run_folder import find_checkpoints, trainer_state, training_arguments
from paddle_merge.errors import CheckpointError
from tests.support import runs


def found(folder: Path) -> dict[str, list[tuple[int, str]]]:
    return {kind: [(one.step, one.missing) for one in saved] for kind, saved in find_checkpoints(str(folder)).items()}


def test_checkpoints_are_found_by_their_names_in_the_order_of_steps(tmp_path: Path) -> None:
    for name in (
        "checkpoint-100",
        "checkpoint-20",
        "hf_checkpoint-100",
        "ema_hf_checkpoint-100",
        "checkpoint-100/ema_state",
    ):
        (tmp_path / name).mkdir()
    for name in ("tmp-checkpoint-40", "checkpoint-", "checkpoint-5x", "checkpoint", "runs"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-7").write_text("not a folder")
    assert found(tmp_path) == {
        "checkpoint": [(20, ""), (100, "")],
        "hf_checkpoint": [(100, "")],
        "ema_state": [(100, "")],
        "ema_hf_checkpoint": [(100, "")],
    }
    with pytest.raises(CheckpointError, match=r"nowhere: can't be read .*; give the output folder of a training run"):
        find_checkpoints(str(tmp_path / "nowhere"))


def test_a_checkpoint_that_a_rank_has_not_finished(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        for rank in (0, 1):
            (tmp_path / f"checkpoint-{step}" / "model_state").mkdir(parents=True, exist_ok=True)
            (tmp_path / f"checkpoint-{step}" / "model_state" / f"{rank}_0.distcp").touch()
    assert found(tmp_path) == {"checkpoint": [(1, ""), (2, ""), (3, ""), (4, "")]}  # an older version writes no signals
    for step, ranks in {1: (0, 1), 2: (0,), 3: ()}.items():
        for rank in ranks:
            (tmp_path / f"checkpoint-{step}" / f"saved_signal_{rank}").touch()
    for rank in (0, 1):
        (tmp_path / "checkpoint-4" / f"saved_signal_{rank}").touch()
    (tmp_path / "checkpoint-4" / "model_state" / "1_0.distcp").unlink()  # trained on with one rank less
    unfinished = "rank {0} has not finished it: there is no saved_signal_{0}"
    assert found(tmp_path) == {
        "checkpoint": [(1, ""), (2, unfinished.format(1)), (3, unfinished.format(0)), (4, "")],
    }


def test_a_checkpoint_counts_once(tmp_path: Path) -> None:
    for name in ("checkpoint-2", "checkpoint-4", "checkpoint-04"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-8").symlink_to(tmp_path / "checkpoint-2")
    assert found(tmp_path) == {
        "checkpoint": [
            (2, ""),
            (4, ""),
            (4, f"it is {tmp_path}/checkpoint-04 once more"),
            (8, f"it is {tmp_path}/checkpoint-2 once more"),
        ]
    }


def test_a_checkpoint_that_can_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("checkpoint-2", "checkpoint-4"):
        (tmp_path / name).mkdir()
    listdir = os.listdir

    def guarded(path: str) -> list[str]:
        if str(path).endswith("checkpoint-2"):
            raise PermissionError(13, "Permission denied")
        return listdir(path)

    monkeypatch.setattr(os, "listdir", guarded)
    assert found(tmp_path) == {"checkpoint": [(2, "it can't be read (Permission denied)"), (4, "")]}


def test_what_training_says_is_read_without_running_anything(tmp_path: Path) -> None:
    assert trainer_state(str(tmp_path)) == {}
    assert training_arguments(str(tmp_path)) == {}
    runs.arguments(tmp_path, zcc_save_ema_coef=0.99, zcc_ema_interval=2)
    said = training_arguments(str(tmp_path))
    assert (said["zcc_save_ema_coef"], said["zcc_ema_interval"], said["output_dir"]) == (0.99, 2, "out")
    (tmp_path / "training_args.bin").rename(tmp_path / "trainer_state.bin")  # of the same kind
    assert trainer_state(str(tmp_path))["output_dir"] == "out"

    class Evil:
        def __reduce__(self) -> object:
            return os.mkdir, (str(tmp_path / "ran"),)

    (tmp_path / "training_args.bin").write_bytes(pickle.dumps(Evil()))
    assert training_arguments(str(tmp_path)) == {}
    assert not (tmp_path / "ran").exists()
    for content in (b"", b"PK\x03\x04 of torch", pickle.dumps(np.arange(3))[:-5]):
        (tmp_path / "training_args.bin").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"training_args\.bin"):
            training_arguments(str(tmp_path))
