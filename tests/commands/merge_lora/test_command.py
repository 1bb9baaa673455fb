"""Test the command merge-lora: its output, warnings and failures."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from paddle_merge import CheckpointError, OutputError
from paddle_merge.commands.main import main
from tests.conversion.lora.test_lora import peft
from tests.support.adapters import (
    Q,
    V,
    lora,
    merged,
)

A, B = f"{Q}.lora_A.weight", f"{Q}.lora_B.weight"


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapters = [lora(tmp_path / str(seed), {Q: (6, 4, 2)}, seed) for seed in (1, 2)]
    words = ["merge-lora", *adapters, "--weight_list", "0.5", "-0.5", "--combination_type", "ties", "--density", "0.5"]
    with pytest.raises(SystemExit) as end:
        main([*words, "--output_path", str(tmp_path / "out"), "--dry_run"])
    assert end.value.code == 0
    assert not (tmp_path / "out").exists()
    assert "merge    ties of 0.5 * " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*words, "--output_path", str(tmp_path / "out"), "--quiet"])
    assert json.loads((tmp_path / "out" / "merge_lora_report.json").read_text())["reserve_p"] == 0.5


def test_the_same_bytes_again(tmp_path: Path) -> None:
    adapters = [lora(tmp_path / str(seed), {Q: (60, 40, 2), V: (9, 40, 2)}, seed) for seed in (1, 2)]
    prints = set()
    for number in range(2):
        out, _ = merged(
            tmp_path / str(number), *adapters, merge_method="dare_ties", seed=3, rank=4, n_process=1 + 2 * number
        )
        prints.add(hashlib.sha256((out / "adapter_model.safetensors").read_bytes()).hexdigest())
    assert len(prints) == 1


def test_warnings(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    zero = peft(tmp_path / "zero", {A: np.ones((2, 4)), B: np.zeros((6, 2))}, "float32", r=2, base_model_name_or_path="x")
    a = lora(tmp_path / "a", {Q: (6, 4, 2)}, 1, base_model_name_or_path="y")
    with caplog.at_level("WARNING", "paddle_merge"):
        merged(tmp_path, zero, a, a)
    assert "every lora_B is zero" in caplog.text
    assert "different base models: x, y" in caplog.text
    assert "given twice" in caplog.text


def test_a_failure_while_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from paddle_merge.run.output.disk import ShardFiles

    a = lora(tmp_path / "a", {Q: (6, 4, 2)}, 1)
    out, _ = merged(tmp_path, a)
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ShardFiles, "write", fail)
    with pytest.raises(OutputError, match="No space left"):
        merged(tmp_path, a, overwrite=True, weight_list=[2.0])
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_the_tokenizer_is_taken_over_where_the_adapters_agree(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    a, b, c = (lora(tmp_path / str(seed), {Q: (6, 4, 2)}, seed) for seed in (1, 2, 3))
    for adapter, ids in ((a, {"x": 0}), (b, {"x": 0})):
        (Path(adapter) / "vocab.json").write_text(json.dumps(ids))
        (Path(adapter) / "training_args.bin").touch()
    out, _ = merged(tmp_path, a, b, c)
    assert {path.name for path in out.iterdir()} == {
        *("adapter_config.json", "adapter_model.safetensors", "merge_lora_report.json", "vocab.json")
    }
    assert json.loads((out / "vocab.json").read_text()) == {"x": 0}
    (Path(b) / "vocab.json").write_text(json.dumps({"x": 1}))
    with caplog.at_level("WARNING", "paddle_merge"):
        out, _ = merged(tmp_path / "other", a, b)
    assert not (out / "vocab.json").exists()
    assert f"the tokenizers in {a} and {b} differ" in caplog.text


def test_chat_templates_that_differ_and_an_earlier_tokenizer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    a, b = (lora(tmp_path / str(seed), {Q: (6, 4, 2)}, seed) for seed in (1, 2))
    for adapter in (a, b):
        (Path(adapter) / "vocab.json").write_text(json.dumps({"x": 0}))
        (Path(adapter) / "tokenizer_config.json").write_text(json.dumps({"chat_template": "one"}))
    out, _ = merged(tmp_path, a, b)
    assert (out / "tokenizer_config.json").exists()
    (Path(b) / "chat_template.jinja").write_text("two")
    with caplog.at_level("WARNING", "paddle_merge"):
        out, _ = merged(tmp_path, a, b, overwrite=True)
    assert f"the chat templates in {a} and {b} differ" in caplog.text
    assert {path.name for path in out.iterdir()} == {
        *("adapter_config.json", "adapter_model.safetensors", "merge_lora_report.json")
    }


def test_what_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The distance names the worst layer; 0 can't be told from 1e-8. One adapter's tensor is the same in no others."""
    head = {"lm_head.weight": np.ones((5, 4))}
    a = lora(tmp_path / "a", {Q: (6, 4, 2)}, 1, "bfloat16", extra=head, modules_to_save=["lm_head"])
    b = lora(tmp_path / "b", {Q: (6, 4, 2), V: (6, 4, 2)}, 2, "bfloat16")
    with caplog.at_level("INFO", "paddle_merge"):
        merged(tmp_path, a, b)
        assert "distance below 1e-7 from the exact sum of the changes, relative to its norm\n" in caplog.text
        assert "copied   lm_head.weight (of one adapter)" in caplog.text
        caplog.clear()
        _, report = merged(tmp_path, a, b, weight_list=[1.0, 0.3], overwrite=True)
    worst = max(report["layers"], key=lambda row: row["distance_from_sum"])
    assert f"norm; at most {worst['distance_from_sum']:.3g}, in {worst['name']}" in caplog.text


def test_the_layout_is_of_the_base_alone(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    save_file({f"{Q}.weight": np.ones((4, 4), np.float32)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"--layout, one of [a-z, ]+$"):
        merged(tmp_path, lora(tmp_path / "a", {Q: (4, 4, 2)}, 1), base_model_path=str(folder), format="paddleformers")
