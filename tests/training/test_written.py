"""Checkpoints in the forms from which Trainers resume: master weights, flex and unified checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from paddle_merge.checkpoints.open import open_checkpoint
from paddle_merge.training import AverageCallback, EmaCallback
from paddle_merge.training.flex import write_metadata
from paddle_merge.training.unified import add_head, names_in, write_index
from tests.support.trainers import CONFIG, SHAPES, Run, paddle, values

MASTERS = {"llama.norm.weight": "norm_0.w_0", "llama.layers.0.mlp.up_proj.weight": "up_0.w_0"}  # weight -> parameter


class Mixed(Run):
    """A training in bfloat16, whose optimizer holds float32 masters of two weights."""

    def __init__(self, folder: Path, form: str):
        super().__init__(folder, dtype="bfloat16")
        self.form = form
        if form == "flex":
            self.args.__class__ = type("Arguments", (SimpleNamespace,), {"__module__": "paddleformers.trainer"})
        for name, parameter in MASTERS.items():
            self.model.state_dict()[name].name = parameter

    def write(self, step: int) -> None:
        super().write(step)
        folder = Path(self.args.output_dir, f"checkpoint-{step}")
        state = {name: paddle.full(list(shape), float(step), "bfloat16") for name, shape in SHAPES.items()}
        masters = {name: paddle.full(list(SHAPES[name]), float(step), "float32") for name in MASTERS}
        (folder / "model_state.pdparams").unlink()
        (folder / "config.json").write_text(json.dumps({**CONFIG, "dtype": "bfloat16"}))
        if self.form == "pdparams":
            paddle.save(state, str(folder / "model_state.pdparams"))
            held = {MASTERS[name]: tensor for name, tensor in masters.items()}
            paddle.save({"moment": paddle.ones([2]), "master_weights": held}, str(folder / "optimizer.pdopt"))
        elif self.form == "unified":
            bits = {name: np.asarray(tensor.numpy()).view(np.uint16) for name, tensor in state.items()}
            save_file(bits, folder / "model-00001-of-00001.safetensors", {"format": "np"})
            write_index(str(folder / "model-00001-of-00001.safetensors"), str(folder / "model.safetensors.index.json"))
            file = folder / "master_weights-00001-of-00001.safetensors"
            save_file({name: tensor.numpy() for name, tensor in masters.items()}, file, {"format": "np"})
            write_index(str(file), str(folder / "master_weights.safetensors.index.json"))
        else:
            state["lm_head.weight"] = state["lm_head.weight"].T.contiguous()  # as PaddleFormers has it, and its names
            flex(folder / "model_state", {renamed(name): tensor for name, tensor in state.items()})
            flex(folder / "master_weight", {f"{renamed(name)}.w_0": tensor for name, tensor in masters.items()})


def renamed(name: str) -> str:
    return name.replace("llama.", "model.")


def flex(folder: Path, tensors: dict[str, Any]) -> None:
    folder.mkdir()
    paddle.save(tensors, str(folder / "0_0.distcp"))
    described = {
        name: (SimpleNamespace(shape=tuple(tensor.shape), dtype=SimpleNamespace(name=str(tensor.dtype)[7:])), "0_0.distcp")
        for name, tensor in tensors.items()
    }
    write_metadata(str(folder), described)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["pdparams", "unified"])
def test_master_weights_are_those_of_the_merge(tmp_path: Path, form: str) -> None:
    """Else the first step after resuming would go on from the last checkpoint."""
    run = Mixed(tmp_path, form)
    run.args.save_steps = 1
    run.train([AverageCallback(last=2)], steps=6)
    output = tmp_path / "average"
    if form == "pdparams":
        state = paddle.load(str(output / "optimizer.pdopt"))
        assert state["moment"].numpy().tolist() == [1, 1]
        masters = {name: state["master_weights"][parameter].numpy() for name, parameter in MASTERS.items()}
        before = paddle.load(str(tmp_path / "checkpoint-6" / "optimizer.pdopt"))["master_weights"]
        assert float(before["norm_0.w_0"][0]) == 6.0  # the checkpoint's own file stays
    else:
        index = output / "master_weights.safetensors.index.json"
        file = set(json.loads(index.read_text())["weight_map"].values())
        masters = load_file(output / file.pop())
        assert (output / "model.safetensors.index.json").exists()
    for name in MASTERS:
        assert masters[name].dtype == np.float32
        np.testing.assert_array_equal(masters[name], np.full(SHAPES[name], 5.5, np.float32))


@pytest.mark.parametrize("sliced", ["masters", "weights"])
def test_parts_of_ranks_are_not_mixed_with_whole_weights(
    tmp_path: Path, sliced: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Sliced(Mixed):
        def write(self, step: int) -> None:
            super().write(step)
            folder = Path(self.args.output_dir, f"checkpoint-{step}")
            if sliced == "weights":
                (folder / "model_state.pdparams").rename(folder / "model_state.tp00.pdparams")
                return
            half = {parameter: paddle.ones([2]) for parameter in MASTERS.values()}
            paddle.save({"master_weights": half}, str(folder / "optimizer.pdopt"))

    Sliced(tmp_path, "pdparams").train([AverageCallback(last=2)], steps=4)
    assert values(tmp_path / "average").keys() == SHAPES.keys()
    assert not {"optimizer.pdopt", "trainer_state.json"} & {path.name for path in (tmp_path / "average").iterdir()}
    assert "from_pretrained opens it, but no Trainer can go on from it" in caplog.text


def test_a_flex_checkpoint_with_masters(tmp_path: Path) -> None:
    run = Mixed(tmp_path, "flex")
    run.train([AverageCallback(last=2)], steps=4)
    output = tmp_path / "average"
    weights = open_checkpoint(str(output / "model_state"), "model").tensors
    shapes = {renamed(name): shape for name, shape in SHAPES.items()} | {"lm_head.weight": (8, 4)}
    assert {name: entry.shape for name, entry in weights.items()} == shapes
    assert {entry.dtype.name for entry in weights.values()} == {"bfloat16"}
    masters = values(output / "master_weight", "0_0.distcp")
    assert sorted(masters) == ["model.layers.0.mlp.up_proj.weight.w_0", "model.norm.weight.w_0"]
    np.testing.assert_array_equal(masters["model.norm.weight.w_0"], np.full(4, 3.0, np.float32))
    metadata = paddle.load(str(output / "model_state" / "0.metadata"))
    description = metadata.state_dict_metadata["lm_head.weight"][0]
    assert (description.global_offset, description.local_shape, description.dtype) == ((0, 0), (8, 4), "bfloat16")
    assert set(metadata.storage_metadata.values()) == {"0_0.distcp"}
    assert (output / "model.safetensors").exists()  # for from_pretrained


def test_a_tied_head_is_added_for_the_trainer(tmp_path: Path) -> None:
    file = str(tmp_path / "model.safetensors")
    embedding = np.arange(12, dtype=np.float32).reshape(4, 3)
    save_file({"model.embed_tokens.weight": embedding, "model.norm.weight": np.ones(3, np.float32)}, file, {"format": "pt"})
    add_head(file)
    add_head(file)  # once is enough
    write_index(file, f"{file}.index.json")
    held = load_file(file)
    assert sorted(held) == sorted(names_in(f"{file}.index.json"))
    np.testing.assert_array_equal(held["lm_head.weight"], embedding)
    np.testing.assert_array_equal(held["model.embed_tokens.weight"], embedding)
    assert json.loads((tmp_path / "model.safetensors.index.json").read_text())["metadata"]["total_size"] == 27 * 4


def test_masters_of_a_moving_average_are_not_rounded(tmp_path: Path) -> None:
    """(0.5 * 2 + 0.25 * 1) / 0.75 is 1.6667, and 1.6641 in bfloat16."""
    run = Mixed(tmp_path, "pdparams")
    run.train([EmaCallback(0.5)], steps=2)
    masters = paddle.load(str(tmp_path / "ema" / "optimizer.pdopt"))["master_weights"]
    assert float(masters["norm_0.w_0"][0]) == pytest.approx(5 / 3, abs=1e-7)
    weights = paddle.load(str(tmp_path / "ema" / "model_state.pdparams"))
    assert float(weights["llama.norm.weight"].astype("float32")[0]) == 1.6640625
