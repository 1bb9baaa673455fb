"""Test special files, endless files and unreadable files: each is refused with one sentence, within seconds."""

from __future__ import annotations

import ctypes
import json
import os
import pickle
import shutil
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_merge import CheckpointError, ConfigError, MergeConfig, MergeError, merge
from paddle_merge.checkpoints.open import open_checkpoint
from paddle_merge.commands.inspect.cli import InspectConfig, inspect
from paddle_merge.commands.inspect.show import lines
from paddle_merge.recipe.request import Request
from tests.checkpoints.formats.test_pickles import MADE, text
from tests.support import specimens
from tests.support.checkpoints import read, write
from tests.support.sweeps import few

TENSORS = {"w": np.arange(6.0).reshape(2, 3), "b": np.ones(3)}
ROOT = Path(__file__).parents[2]


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return write(tmp_path / "good", TENSORS)


def put(path: Path, kind: str) -> None:
    """Something at this path that is no file."""
    path.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as one:
            before = os.getcwd()
            os.chdir(path.parent)  # paths of sockets are short
            one.bind(path.name)
            os.chdir(before)
    elif kind == "loop":
        path.symlink_to(path)
    else:
        path.symlink_to(kind)


def merged(*models: Path, out: Path, **fields: Any) -> dict[str, np.ndarray] | list[str]:
    """What a merge gives: tensors, or sentences."""
    try:
        merge(MergeConfig(model_path_list=list(map(str, models)), output_path=str(out), **fields))
    except MergeError as error:
        assert not out.exists()
        return error.problems
    return read(out)


@pytest.mark.parametrize("kind", ["fifo", "folder", "socket", "loop", "/dev/null", "/dev/zero", "nowhere"])
@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json", "model.safetensors.index.json"])
def test_what_is_no_file(tmp_path: Path, good: Path, kind: str, file: str) -> None:
    """Weights that are none are missed; what may be missing is."""
    bad = write(tmp_path / "bad", TENSORS)
    put(bad / file, kind)
    result = merged(bad, good, out=tmp_path / "out")
    if file == "model.safetensors":
        assert isinstance(result, list)
        (sentence,) = result
        assert sentence.startswith(f"{bad}: has no model.safetensors")
        assert sentence.endswith("; its model.safetensors is not a file, or is a link whose target doesn't exist")
    else:
        assert isinstance(result, dict)
        assert (result["w"] == TENSORS["w"]).all()


@pytest.mark.parametrize("kind", ["fifo", "socket", "/dev/null", "/dev/zero"])
def test_a_model_that_is_neither_file_nor_folder(tmp_path: Path, kind: str) -> None:
    put(tmp_path / "model.safetensors", kind)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(str(tmp_path / "model.safetensors"))
    reason = "No such device or address" if kind == "socket" else "it is not a regular file"
    assert caught.value.problems == [f"{tmp_path}/model.safetensors: can't be read ({reason})"]


@pytest.mark.parametrize("file", ["model_state.tp00.pdparams", "0.metadata", "0_0.distcp", "model-1.bin"])
@pytest.mark.parametrize("kind", ["fifo", "/dev/zero"])
def test_no_files_where_names_are_searched_for(tmp_path: Path, file: str, kind: str) -> None:
    put(tmp_path / file, kind)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(str(tmp_path))
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("name", ["merge.json", "merge.yaml"])
@pytest.mark.parametrize("kind", ["fifo", "/dev/zero", "folder"])
def test_config_files_that_are_none(tmp_path: Path, name: str, kind: str) -> None:
    put(tmp_path / name, kind)
    with pytest.raises(ConfigError, match=r"merge\.(json|yaml): can't be read"):
        MergeConfig.from_file(str(tmp_path / name))


# --- a terabyte of nothing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "file", ["config.json", "tokenizer.json", "model.safetensors.index.json", "generation_config.json", "model.safetensors"]
)
def test_a_terabyte(tmp_path: Path, good: Path, file: str) -> None:
    bad = write(tmp_path / "bad", TENSORS)
    with (bad / file).open("ab") as stream:
        stream.truncate(1 << 40)
    result = merged(bad, good, out=tmp_path / "out")
    assert isinstance(result, list)
    (sentence,) = result
    assert str(bad / file) in sentence
    assert "longer than its header says" in sentence if file == "model.safetensors" else "it is larger than" in sentence


def test_a_terabyte_of_config(tmp_path: Path) -> None:
    with (tmp_path / "merge.yaml").open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(ConfigError, match="can't be read"):
        MergeConfig.from_file(str(tmp_path / "merge.yaml"))


def test_a_zip_whose_list_of_members_is_said_to_be_large(tmp_path: Path) -> None:
    with (tmp_path / "pytorch_model.bin").open("wb") as stream:
        stream.write(b"PK\x03\x04")
        stream.truncate(5 << 30)
        stream.seek(0, 2)
        stream.write(b"PK\x05\x06" + struct.pack("<4H2LH", 0, 0, 1, 1, 0xF0000000, 100, 0))
    with pytest.raises(CheckpointError, match="is not a whole zip file"):
        open_checkpoint(str(tmp_path))


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", few([b"a\xffb", b"new\nline", b"\x1b[2J", "é\u202e".encode(), b"x" * 250, b"*[a]", b"p+p", b"-x"], 0)
)
def test_odd_names_of_folders(tmp_path: Path, good: Path, name: bytes) -> None:
    """From the command line, to the record and back, also where the terminal's encoding is ASCII."""
    folder = tmp_path / os.fsdecode(name)
    shutil.copytree(good, folder)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}

    def run(*words: str) -> None:
        command = [sys.executable, "-m", "paddle_merge", *words]
        done = subprocess.run(command, capture_output=True, env=environment, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert b"Traceback" not in done.stderr
        assert b"Logging error" not in done.stderr

    run("--model_path_list", str(folder), str(good), "--output_path", str(folder) + "o")
    run(str(folder) + "o/merge_config.json", "--output_path", str(folder) + "p", "--dry_run")
    run("inspect", str(folder), str(good))
    assert (read(tmp_path / (os.fsdecode(name) + "o"))["w"] == TENSORS["w"]).all()


def test_names_that_are_equal_but_for_case(tmp_path: Path) -> None:
    """Two tensors, and two shards."""
    tensors = {"w": TENSORS["w"], "W": -TENSORS["w"]}
    folder = write(tmp_path / "a", tensors, shards=2)
    for number, name in enumerate(("m.safetensors", "M.safetensors"), 1):
        (folder / f"model-{number:05d}-of-00002.safetensors").rename(folder / name)
    index = {"weight_map": {"w": "m.safetensors", "W": "M.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    result = merged(folder, write(tmp_path / "b", tensors), out=tmp_path / "out")
    assert isinstance(result, dict)
    assert all((result[name] == x).all() for name, x in tensors.items())


@pytest.mark.parametrize(
    "name", ["../good/model.safetensors", "/etc/passwd", "sub/x", "..", ".", "", "a\0b", "x" * 5000, "..\\x", "x/", "n\nx"]
)
def test_an_index_names_no_other_folder(tmp_path: Path, good: Path, name: str) -> None:
    bad = write(tmp_path / "bad", TENSORS)
    (bad / "model.safetensors").unlink()
    (bad / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name, "b": name}}))
    result = merged(bad, good, out=tmp_path / "out")
    assert isinstance(result, list)
    (sentence,) = result
    assert "outside its folder" in sentence or "don't exist" in sentence
    assert sentence.isprintable()
    assert len(sentence) < 500


def test_links_in_a_folder_are_followed(tmp_path: Path, good: Path) -> None:
    """As in the snapshots of hubs' caches."""
    blob = shutil.copy(good / "model.safetensors", tmp_path / "blob")
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (snapshot / "model.safetensors").symlink_to(os.path.relpath(blob, snapshot))
    result = merged(snapshot, good, out=tmp_path / "out")
    assert isinstance(result, dict)
    assert (result["w"] == TENSORS["w"]).all()


# --- where things lie ------------------------------------------------------------------------------------------------


def test_inputs_and_outputs_within_each_other(tmp_path: Path, good: Path) -> None:
    assert isinstance(merged(good, good, out=tmp_path / "twice"), dict)
    assert isinstance(merged(good, good, out=good / "within"), dict)
    outer = tmp_path / "outer"
    write(outer / "inner", TENSORS)
    merge(MergeConfig(model_path_list=[str(outer / "inner"), str(good)], output_path=str(outer), overwrite=True))
    assert (read(outer)["w"] == read(outer / "inner")["w"]).all()
    (tmp_path / "link").symlink_to(good)
    for same in (good, tmp_path / "link", Path(f"{good}/.")):
        with pytest.raises(MergeError, match="is or holds one of the inputs"):
            merge(MergeConfig(model_path_list=[str(good)] * 2, output_path=str(same), overwrite=True))


def test_outputs_in_what_is_a_file(tmp_path: Path, good: Path) -> None:
    with pytest.raises(MergeError, match=r"config\.json is a file, so there can be no folder in it"):
        merge(MergeConfig(model_path_list=[str(good)] * 2, output_path=str(good / "config.json" / "x")))


def test_an_empty_path_is_called_that(tmp_path: Path, good: Path) -> None:
    (sentence, *_) = merged(good, Path("x"), out=tmp_path / "out", model_path_str=None)
    with pytest.raises(CheckpointError, match="one of the models' paths is empty"):
        merge(MergeConfig(model_path_list=[str(good), ""], output_path=str(tmp_path / "out")))
    assert "no such file or folder" in str(sentence)


@pytest.mark.parametrize(
    ("path", "mode", "words"),
    [
        *few(
            [
                ("model.safetensors", 0, "model.safetensors: can't be read (Permission denied)"),
                (".", 0o000, "can't be read (no permission to list or enter the folder)"),
                (".", 0o100, "can't be read (no permission to list or enter the folder)"),
                (".", 0o600, "can't be read (no permission to list or enter the folder)"),
                ("config.json", 0, "config.json: can't be read (Permission denied)"),
                ("tokenizer.json", 0, "tokenizer.json: can't be read (Permission denied)"),
            ],
            unpack=True,
        ),
    ],
)
def test_without_permission(tmp_path: Path, good: Path, path: str, mode: int, words: str) -> None:
    """Root's two capabilities to read everything are dropped, if this is root."""
    bad = write(tmp_path / "bad", TENSORS)
    (bad / "tokenizer.json").write_text("{}")
    (bad / path).chmod(mode)

    def drop() -> None:
        for capability in (1, 2):
            ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)

    command = [sys.executable, "-m", "paddle_merge", "--model_path_list", str(bad), str(good), "--output_path", "out"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, preexec_fn=drop, env=environment)
    (bad / path).chmod(0o755)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {bad}")
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


# --- found by fuzzing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["max_shard_size", "max_memory"])
def test_an_empty_size(name: str) -> None:
    with pytest.raises(ConfigError, match=f"--{name} '' must be a size"):
        Request.of(MergeConfig(model_path_list=["a", "b"], **{name: ""})).checked_recipe()  # type: ignore[arg-type]


def test_patterns_that_are_no_table_are_told_by_inspect(tmp_path: Path) -> None:
    for name, content in specimens.adapter("peft").files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    path = tmp_path / "b" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rank_pattern": ["x"]}))
    (found,) = inspect(InspectConfig([str(tmp_path / "b")]))["checkpoints"]
    assert any("rank_pattern" in sentence for sentence in found["problems"])


@pytest.mark.parametrize("told", [5, "x", {"a": 1}, [[["x"]]], True])
def test_architectures_that_are_no_list(tmp_path: Path, told: Any) -> None:
    write(tmp_path / "a", TENSORS, config={"architectures": told, "model_type": "llama"})
    assert any("family" in line for line in lines(inspect(InspectConfig([str(tmp_path / "a")]))))


@pytest.mark.parametrize(
    ("good_", "bad"),
    [
        (text("f4"), text("j")),  # no dtype of NumPy's
        (b"K\x00\x85C\x01b\x87R", b"M\xff\xff\x85C\x01b\x87R"),  # _reconstruct of a shape that NumPy would allocate
        (b"tb\x89C", b"tbK\x02C"),  # neither C's order nor Fortran's
    ],
)
def test_arrays_that_numpy_would_refuse(tmp_path: Path, good_: bytes, bad: bytes) -> None:
    content = (
        b"\x80\x04}" + text("w") + MADE + b"(K\x01K\x02\x85\x8c\x05numpy\x8c\x05dtype\x93" + text("f4") + b"\x89\x88\x87R"
        + b"(K\x03" + text("<") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89C\x08" + bytes(8) + b"tbs."
    )  # fmt: skip
    (tmp_path / "model_state.pdparams").write_bytes(content)
    assert open_checkpoint(str(tmp_path)).tensors["w"].shape == (2,)
    assert good_ in content
    (tmp_path / "model_state.pdparams").write_bytes(content.replace(good_, bad))
    with pytest.raises(CheckpointError):
        open_checkpoint(str(tmp_path))


def test_pickles_of_python_still_load(tmp_path: Path) -> None:
    (tmp_path / "model_state.pdparams").write_bytes(pickle.dumps({"w": np.asfortranarray(TENSORS["w"])}, protocol=4))
    assert open_checkpoint(str(tmp_path)).tensors["w"].shape == (2, 3)
