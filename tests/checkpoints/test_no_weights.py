"""Test what is said of folders without weights: the reason, and a remedy that works."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from paddle_merge import CheckpointError, MergeConfig, merge
from paddle_merge.checkpoints.adapters import open_adapter
from paddle_merge.checkpoints.formats.folder import no_weights_message
from paddle_merge.checkpoints.open import open_checkpoint
from tests.support.checkpoints import read, write

TENSORS = {"conv_in.weight": np.ones((3, 4))}
FILES = {
    "a checkpoint of ZeRO": (["global_step9/x", "training_args.bin", "latest"], "run zero_to_fp32.py"),
    "what FSDP saves": (["pytorch_model_fsdp_0/__0_0.distcp"], "accelerate merge-weights"),
    "one shard": (["model-00001-of-00002.safetensors"], "but not their index, model.safetensors.index.json"),
    "master weights": (["master_weights-x.safetensors"], "pass --merge_prefix master_weights"),
    "shards of master weights": (
        ["master_weights-00001-of-00002.safetensors", "master_weights.safetensors.index.json"],
        "pass --merge_prefix master_weights",
    ),
    "files of sharding ranks": (["model_state.tp00_shard00.pdparams"], "save it in one piece"),
    "another name": (["weights.safetensors"], "it has weights.safetensors: give the path of that file"),
    "only arguments": (["training_args.bin", "optimizer.bin"], "and no index of one"),
    "GGUF": (["model-Q4_K_M.gguf", "config.json"], "; model-Q4_K_M.gguf is GGUF, llama.cpp's form of a model: merge"),
    "ONNX": (["model.onnx", "model.onnx_data"], "; model.onnx is ONNX"),
    "an inference model": (["inference.pdiparams", "inference.json"], "is Paddle's form for inference"),
    "an optimizer alone": (["config.json", "optimizer.pdopt"], "is an optimizer's state: merge the weights"),
    "Flax": (["flax_model.msgpack"], "; flax_model.msgpack is Flax's: save the model as safetensors first"),
    "another ending": (["config.json", "last.ckpt"], "; it has last.ckpt: give the path of that file"),
    "a folder further down": (["checkpoint-5/model.safetensors", "checkpoint-9/model.safetensors"], "give"),
    "a pipeline": (["model_index.json", "unet/diffusion_pytorch_model.safetensors"], "one by one (unet)"),
}


@pytest.mark.parametrize("what", FILES)
def test_reasons(tmp_path: Path, what: str) -> None:
    files, words = FILES[what]
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(str(tmp_path))
    (sentence,) = caught.value.problems
    assert words in sentence
    assert "training_args" not in sentence.partition("index of one")[2]
    if what == "a folder further down":
        assert f"give {tmp_path}/checkpoint-5 (or checkpoint-9)" in sentence


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin", "model_state.pdparams"])
def test_a_git_lfs_pointer(tmp_path: Path, file: str) -> None:
    (tmp_path / file).write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 1234\n")
    with pytest.raises(CheckpointError, match="Git LFS pointer"):
        open_checkpoint(str(tmp_path))


def test_files_of_other_forms(tmp_path: Path) -> None:
    for name in ("optimizer.pdopt", "inference.pdiparams", "x.gguf"):
        (tmp_path / name).write_bytes(b"\x80\x04}.")
        with pytest.raises(CheckpointError, match=f"{name}: is .*: merge the "):
            open_checkpoint(str(tmp_path / name))


def test_an_index_instead_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is an index of files of weights; give the folder that holds it"):
        open_checkpoint(str(tmp_path / "model.safetensors.index.json"))


def test_an_adapter_one_folder_further_down(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-500").mkdir()
    (tmp_path / "checkpoint-500" / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=f"holds one: give {tmp_path}/checkpoint-500"):
        open_adapter(str(tmp_path))


@pytest.mark.parametrize("as_file", [False, True])
def test_diffusers_files_in_and_out(tmp_path: Path, as_file: bool) -> None:
    prefix = "diffusion_pytorch_model"
    folders = [
        write(tmp_path / name, {"conv_in.weight": np.full((3, 4), k)}, prefix=prefix) for k, name in ((1.0, "a"), (3.0, "b"))
    ]
    paths = [str(one / f"{prefix}.safetensors") if as_file else str(one) for one in folders]
    merge(MergeConfig(model_path_list=paths, output_path=str(tmp_path / "out")), progress=False)
    assert (read(tmp_path / "out", prefix)["conv_in.weight"] == 2).all()
    record = json.loads((tmp_path / "out" / "merge_config.json").read_text())
    again = {**record, "output_path": str(tmp_path / "again")}
    del again["paddle_merge_version"]
    merge(MergeConfig(**again), progress=False)
    assert (tmp_path / "again" / f"{prefix}.safetensors").exists()


def test_inputs_of_more_channels_name_modules(tmp_path: Path) -> None:
    paths = [
        str(write(tmp_path / f"m{size}", {"conv_in.weight": np.ones((3, size)), "mid.weight": np.ones(4)}))
        for size in (9, 4)
    ]
    with pytest.raises(CheckpointError, match=r"by a recipe with modules: \{conv_in: \.\.\., default: \.\.\.\}"):
        merge(MergeConfig(model_path_list=paths, output_path=str(tmp_path / "out")))
    recipe = f"""
merge_method: linear
parameters: {{weight: 1}}
modules:
  conv_in: {{models: [{{model: {paths[0]}}}]}}
  default: {{models: [{{model: {paths[0]}}}, {{model: {paths[1]}}}]}}
"""
    merge(MergeConfig(recipe_yaml=recipe, output_path=str(tmp_path / "out")), progress=False)
    assert read(tmp_path / "out")["conv_in.weight"].shape == (3, 9)


def test_one_shard_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A model of which only one shard is merged isn't a model; nor do models fit of which a shell listed the shards."""
    for name in "ab":
        write(tmp_path / name, {"v": np.ones(3), "w": np.ones(5)}, shards=2)
    first = [str(tmp_path / name / "model-00001-of-00002.safetensors") for name in "ab"]
    says = [
        f"{path} is one of 2 shards of a model: give the folder, {os.path.dirname(path)}, to merge all" for path in first
    ]
    merge(MergeConfig(model_path_list=first, output_path=str(tmp_path / "out")), progress=False)
    assert all(sentence in caplog.text for sentence in says)
    with pytest.raises(CheckpointError) as caught:
        merge(MergeConfig(model_path_list=[first[0], str(tmp_path / "b")], output_path=str(tmp_path / "more")))
    assert caught.value.problems[0] == says[0]
    assert not any("--missing_tensors" in sentence for sentence in caught.value.problems)
    caplog.clear()
    config = MergeConfig(model_path_list=[first[0]] * 2, base_model_path=first[1], output_path=str(tmp_path / "twice"))
    merge(config, progress=False)
    assert [caplog.messages.count(sentence) for sentence in says] == [1, 1]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["model-00001-of-00001.safetensors"], "it has model-00001-of-00001.safetensors: give the path of that file"),
        (["a.pt"], "it has a.pt: give the path of that file"),
        (["a.pth", "b.pth"], "it has a.pth and b.pth: give the path of the one to merge"),
        (["consolidated.00.pth", "consolidated.01.pth"], "for each rank: convert it to Hugging Face's form, and merge that"),
        (["data.pt/data.pkl"], "and no index of one"),
    ],
)
def test_the_file_to_give_is_named(tmp_path: Path, names: list[str], said: str) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert no_weights_message(str(tmp_path), "model").endswith(said)


def test_hidden_sizes_that_differ(tmp_path: Path) -> None:
    paths = [
        str(
            write(
                tmp_path / f"m{size}",
                {"model.embed_tokens.weight": np.ones((9, size)), "w": np.ones(size)},
                config={"hidden_size": size},
            )
        )
        for size in (8, 4)
    ]
    with pytest.raises(CheckpointError) as caught:
        merge(MergeConfig(model_path_list=paths, output_path=str(tmp_path / "out")))
    assert caught.value.problems == [f"the models' hidden sizes differ: 8 in {paths[0]}, 4 in {paths[1]}"]
