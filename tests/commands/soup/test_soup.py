"""The command soup as people run it: which checkpoints it averages, with which weights, and what it refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from tests.support import runs
from tests.support.checkpoints import dtypes, read, write
from tests.support.command_lines import cli

STEPS = (10, 20, 30, 40)


def state(value: float) -> dict[str, np.ndarray]:
    return {"layers.0.w.weight": np.full((2, 3), float(value)), "norm.weight": np.full(3, value + 0.5)}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose checkpoint-N holds N everywhere, and in its norm N + 0.5; eval_loss is 1, 0.5, 0.75 and 2."""
    scores = dict(zip(STEPS, (1.0, 0.5, 0.75, 2.0), strict=True))
    return runs.run(tmp_path / "run", {step: state(step) for step in STEPS}, scores)


def listed(capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def first(folder: Path) -> float:
    """Return the first element of the first tensor of a checkpoint."""
    return float(read(folder)["layers.0.w.weight"][0, 0])


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert cli("soup", *argv) == 1
    return capsys.readouterr().err


def test_what_a_run_has_is_shown(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(run / "hf_checkpoint-40", state(40))
    assert cli("soup", str(run), "--last", "2") == 0
    assert listed(capsys) == [
        ["checkpoint", "size", "eval_loss", "weight"],
        ["checkpoint-10", "36", "B", "1", "-"],
        ["checkpoint-20", "36", "B", "0.5", "-"],
        ["checkpoint-30", "36", "B", "0.75", "0.5000"],
        ["checkpoint-40", "36", "B", "2", "0.5000"],
        [],
        ["there", "are", "also", "1", "hf_checkpoint", "(--kind)"],
        ["to", "write", "the", "average,", "give", "--output_path"],
    ]
    assert cli("soup", str(run), "--kind", "hf_checkpoint", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert [(one["step"], one["weight"]) for one in said["checkpoints"]] == [(40, 1.0)]
    assert said["others"] == {"checkpoint": 4}


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("", 25.0),
        ("--last 2", 35.0),
        ("--last 1", 40.0),
        ("--steps 10 30", 20.0),
        ("--steps 10 30 --last 2 --decay linear", 25.0),
        ("--last 2 --decay 1-sqrt", 32.928932),  # weights sqrt(1/2) and 1 - sqrt(1/2): 30 + 10 (1 - 0.7071068)
        ("--decay 1 0.5 0.25 0", 17.5),  # 10 + 0.5 x 10 + 0.25 x 10
        ("--decay 0.5 0.25 0", 17.5),
    ],
)
def test_the_average_of_a_window(run: Path, flags: str, expected: float) -> None:
    assert cli("soup", str(run), *flags.split(), "--output_path", str(run / "out"), "--quiet") == 0
    assert first(run / "out") == pytest.approx(expected, rel=1e-6)
    assert read(run / "out")["norm.weight"][0] == pytest.approx(expected + 0.5, rel=1e-6)
    assert json.loads((run / "out" / "config.json").read_text())["architectures"] == ["Tiny"]


def test_flags_of_the_merge_are_those_of_merge(run: Path) -> None:
    out = run / "out"
    flags = ("--output_path", str(out), "--out_dtype", "bfloat16", "--n_process", "1", "--tensor_type", "np", "--quiet")
    assert cli("soup", str(run), *flags, "--dry_run") == 0
    assert not out.exists()
    assert cli("soup", str(run), *flags) == 0
    assert set(dtypes(out).values()) == {"bfloat16"}
    assert cli("soup", str(run), *flags) == 1
    assert cli("soup", str(run), *flags, "--overwrite") == 0


def test_a_damaged_checkpoint_is_left_out_and_shown(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "checkpoint-40" / "model.safetensors").write_bytes(b"cut off")
    assert cli("soup", str(run), "--last", "2", "--output_path", str(run / "out"), "--quiet") == 0
    assert first(run / "out") == 25.0
    assert re.search("checkpoint-40 is left out: .*model.safetensors", capsys.readouterr().out)
    assert f"--last 4: 3 checkpoints can be averaged; {run}/checkpoint-40: " in refused(capsys, str(run), "--last", "4")


def test_a_run_of_an_adapter_needs_its_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With W = 1 and B A = 2 N everywhere, r = alpha = 1, checkpoint-N is 1 + 2 N."""
    base = write(tmp_path / "base", {"layers.0.q_proj.weight": np.ones((2, 3)), "embed_tokens.weight": np.ones((4, 3))})
    for step in (1, 2):
        factors = {"lora_A": np.full((1, 3), 2.0), "lora_B": np.full((2, 1), float(step))}
        tensors = {f"base_model.model.layers.0.q_proj.{name}.weight": x for name, x in factors.items()}
        folder = write(tmp_path / "run" / f"checkpoint-{step}", tensors, prefix="adapter_model")
        (folder / "config.json").unlink()
        settings = {"r": 1, "lora_alpha": 1, "target_modules": ["q_proj"], "peft_type": "LORA"}
        (folder / "adapter_config.json").write_text(json.dumps(settings))
    said = refused(capsys, str(tmp_path / "run"))
    assert "2 checkpoints" not in said
    assert "give the model that it was trained on by --base_model_path" in said
    out = tmp_path / "out"
    flags = ("--base_model_path", str(base), "--output_path", str(out), "--quiet")
    assert cli("soup", str(tmp_path / "run"), *flags) == 0
    assert read(out)["layers.0.q_proj.weight"].tolist() == [[4.0] * 3] * 2


def test_factors_among_the_weights_are_not_averaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (1, 2):
        weights = {"q_proj.weight": np.ones((2, 2)), "q_proj.lora_A": np.ones((2, 1)), "q_proj.lora_B": np.ones((1, 2))}
        runs.flex(tmp_path / f"checkpoint-{step}" / "model_state", weights)
    assert "the mean of such factors isn't the mean of what they do" in refused(capsys, str(tmp_path))


# --- moving averages ------------------------------------------------------------------------------------------------------


def averages(folder: Path, shares: Mapping[int, float], **arguments: object) -> Path:
    """Write checkpoint-N with a norm of ones, a matrix of N, and a moving average that is `share` times these."""
    for step, share in shares.items():
        weights = {"layers.0.w.weight": np.full((2, 3), float(step)), "norm.weight": np.ones(3)}
        checkpoint = folder / f"checkpoint-{step}"
        runs.flex(checkpoint / "model_state", weights)
        runs.flex(checkpoint / "ema_state", {f"{name}.w_0": share * x for name, x in weights.items()})
        runs.arguments(checkpoint, **arguments)
    (folder / "config.json").write_text("{}")
    return folder


ZERO_COST = {
    "enable_zero_cost_checkpoint": True,
    "zcc_save_ema_coef": 0.9,
    "zcc_ema_interval": 2,
    "zcc_ema_loss_threshold": None,
}


def test_averages_that_started_from_zeros_are_corrected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After steps 4 and 10 there were 2 and 5 updates: 1 - 0.9^2 = 0.19 and 1 - 0.9^5 = 0.40951."""
    folder = averages(tmp_path / "run", {4: 0.19, 10: 0.40951}, **ZERO_COST)
    assert cli("soup", str(folder), "--kind", "ema_state", "--output_path", str(tmp_path / "out"), "--quiet") == 0
    assert first(tmp_path / "out") == pytest.approx(7.0)
    assert read(tmp_path / "out")["norm.weight"] == pytest.approx(np.ones(3))
    assert "1 - 0.9^5 = 0.4095" in capsys.readouterr().out
    assert cli("soup", str(folder), "--last", "1", "--output_path", str(tmp_path / "plain"), "--quiet") == 0
    assert first(tmp_path / "plain") == 10.0


def test_averages_that_started_from_the_weights_are_used_as_they_are(tmp_path: Path) -> None:
    folder = averages(tmp_path / "run", {10: 1.0}, **{**ZERO_COST, "enable_zero_cost_checkpoint": False})
    assert cli("soup", str(folder), "--kind", "ema_state", "--output_path", str(tmp_path / "out"), "--quiet") == 0
    assert first(tmp_path / "out") == 10.0


@pytest.mark.parametrize(
    ("share", "changed", "flags", "message"),
    [
        (1.0, {}, "", "it is 1 times the weights in .*checkpoint-10, but would be 0.41 times after 5 updates with"),
        (0.4, {"zcc_ema_loss_threshold": 1.0}, "", "only updated where the loss was below zcc_ema_loss_threshold; give"),
        (0.4, {"zcc_save_ema_coef": None}, "", "nothing says with which coefficient .*; give --ema_coef"),
        (0.4, {}, "--ema_updates 5 6", "--ema_updates has 2 numbers for 1 averages"),
        (0.4, {}, "--ema_coef 1.5", "--ema_coef 1.5 must be between 0 and 1"),
    ],
)
def test_a_correction_that_is_unknown_or_wrong_is_refused(
    tmp_path: Path, share: float, changed: dict[str, object], flags: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = averages(tmp_path / "run", {10: share}, **{**ZERO_COST, **changed})
    assert re.search(message, refused(capsys, str(folder), "--kind", "ema_state", *flags.split()))


def test_the_correction_can_be_given(tmp_path: Path) -> None:
    folder = averages(tmp_path / "run", {10: 0.75}, **{**ZERO_COST, "zcc_ema_loss_threshold": 1.0})
    flags = ("--kind", "ema_state", "--ema_coef", "0.5", "--ema_updates", "2", "--output_path", str(tmp_path / "out"))
    assert cli("soup", str(folder), *flags, "--quiet") == 0
    assert first(tmp_path / "out") == 10.0


def test_an_average_of_a_part_of_the_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = averages(tmp_path / "run", {10: 0.40951}, **ZERO_COST)
    runs.flex(folder / "checkpoint-10" / "model_state", {"norm.weight": np.ones(3), "frozen.weight": np.ones(3)})
    assert "lacks tensor 'frozen.weight'" in refused(capsys, str(folder), "--kind", "ema_state")


def test_an_average_that_is_a_little_off_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = averages(tmp_path / "run", {10: 0.43}, **ZERO_COST)  # 0.40951 is expected
    assert cli("soup", str(folder), "--kind", "ema_state") == 0
    assert "is 0.43 times the weights in" in capsys.readouterr().err
    folder = averages(tmp_path / "other", {10: 0.46}, **ZERO_COST)
    assert cli("soup", str(folder), "--kind", "ema_state") == 1


# --- greedy soups ---------------------------------------------------------------------------------------------------------

SCORE = """
def score(candidate, split, seed, samples):
    value = float(candidate.state_dict()["layers.0.w.weight"][0, 0])
    if value == {broken}:
        raise ValueError("it has no answer")
    assert "architectures" in candidate.config
    return {{"loss": abs(value - 23)}}
"""


def scored(tmp_path: Path, name: str, broken: float = -1) -> str:
    """Write a file that scores a model by how far its first element is from 23."""
    (tmp_path / f"soup_{name}.py").write_text(SCORE.format(broken=broken))
    file = tmp_path / "eval.yaml"
    file.write_text(f'evaluate: {{python: "soup_{name}:score"}}\nobjectives: {{loss: minimize}}\n')
    return str(file)


def test_a_greedy_soup(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Losses are 13, 3, 7 and 17, so the order is 20, 30, 10, 40. With 30 the mean is 25 (2: stays), with 10 it is 20
    (3: left out), with 40 it is 30 (7: left out)."""
    flags = ("--with", scored(tmp_path, "greedy"), "--output_path", str(tmp_path / "out"), "--quiet")
    assert cli("soup", str(run), *flags) == 0
    assert first(tmp_path / "out") == 25.0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["members"] == ["checkpoint-20", "checkpoint-30"]
    assert [(one["added"], one["kept"], one["search"]["metrics"]["loss"]) for one in report["tried"]] == [
        ("checkpoint-30", True, 2.0),
        ("checkpoint-10", False, 3.0),
        ("checkpoint-40", False, 7.0),
    ]
    assert report["average"]["search"]["metrics"]["loss"] == 2.0  # of 25
    assert "2 of 4 checkpoints stayed" in capsys.readouterr().out

    journal = (tmp_path / "out" / "journal.jsonl").read_text()
    (tmp_path / "out" / "journal.jsonl").write_text("\n".join(journal.splitlines()[:4]) + "\n")
    assert cli("soup", str(run), *flags, "--resume", "--json") == 0
    again = (tmp_path / "out" / "journal.jsonl").read_text()
    assert len(again.splitlines()) == len(journal.splitlines())
    assert first(tmp_path / "out") == 25.0


def test_a_checkpoint_that_can_not_be_scored_is_no_member(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--with", scored(tmp_path, "broken", 20.0), "--output_path", str(tmp_path / "out"), "--quiet")
    assert cli("soup", str(run), *flags) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["members"] == ["checkpoint-30"]  # 7; with 10 the mean is 20, which fails; with 40 it is 35
    assert "checkpoint-20 failed: ValueError: it has no answer" in capsys.readouterr().out


@pytest.mark.exhaustive
def test_the_dtype_that_is_asked_for_is_scored(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Checkpoints of different dtypes have no average without one."""
    write(run / "checkpoint-20", state(20), "float16")
    flags = ("--last", "3", "--with", scored(tmp_path, "dtypes"), "--output_path", str(tmp_path / "out"), "--quiet")
    assert cli("soup", str(run), *flags, "--out_dtype", "float32", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["soup"]["members"] == ["checkpoint-20", "checkpoint-30"]
    assert set(dtypes(tmp_path / "out").values()) == {"float32"}
    assert cli("soup", str(run), *flags, "--out_dtype", "float64", "--resume") == 1
    assert "checkpoint-20 was scored as another merge than it would be now, with other flags" in capsys.readouterr().err
    write(run / "checkpoint-30", state(31))  # under its old name, with other weights
    assert cli("soup", str(run), *flags, "--out_dtype", "float32", "--resume") == 1
    assert f"holds scores of other files ({run}/checkpoint-30/model.safetensors changed" in capsys.readouterr().err


def test_a_run_that_changed_its_model(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(run / "checkpoint-10", {"layers.0.w.weight": np.zeros((4, 3)), "norm.weight": np.zeros(3)})
    assert "so the run changed its model; --steps or --last takes" in refused(capsys, str(run))
    assert cli("soup", str(run), "--last", "3") == 0


def test_scores_that_are_no_numbers_are_null(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "checkpoint-40" / "trainer_state.json"
    path.write_text(path.read_text().replace('"eval_loss": 2.0', '"eval_loss": NaN'))
    assert cli("soup", str(run), "--json") == 0
    said = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert said["checkpoints"][-1]["metrics"] == {"eval_loss": None}


def test_json_is_ascii(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = run.rename(run.parent / "é")
    assert cli("soup", str(named), "--json") == 0
    printed = capsys.readouterr().out
    assert printed.isascii()
    assert json.loads(printed)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--output_path runs/checkpoint-50", "Trainers take such a folder for a checkpoint of theirs"),
        ("--json --dry_run --output_path o", "--json prints the checkpoints, and --dry_run the plan"),
        ("--ema_coef 0.9", "are for moving averages"),
        ("--with eval.yaml", "--with needs the folder for the journal and the result"),
        ("--with eval.yaml --decay cosine --output_path o", "--decay has no effect beside it"),
        ("--with eval.yaml --dry_run --output_path o", "--dry_run plans a merge"),
        ("--workers 2", "--workers has no effect without --with"),
        ("--steps 30 10", "--steps takes the first and the last step"),
        ("--decay cos", "decay 'cos' must be one of uniform, linear, cosine, 1-sqrt, or a list of numbers"),
        ("--decay 1 0.5", "decay has 2 numbers; 4 checkpoints need 4"),
        ("--kind ema_state", "--kind ema_state: .* has none; it has 4 checkpoint"),
        ("--kind step", "--kind 'step' must be one of checkpoint"),
        ("--steps 11 19", "0 checkpoints between steps 11 and 19 can be averaged"),
        ("--base_model_path base", "--base_model_path is for runs that saved LoRA adapters"),
        ("--ema_updates -1", "--ema_updates are numbers of updates"),
    ],
)
def test_what_makes_no_sense_is_refused(run: Path, flags: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert re.search(message, refused(capsys, str(run), *flags.split()))


def test_a_folder_that_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "has no folder checkpoint-N or hf_checkpoint-N" in refused(capsys, str(tmp_path))
    assert "give one folder of a run" in refused(capsys, str(tmp_path), str(tmp_path))
