"""Test which files beside the weights a merge copies."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from paddle_merge import MergeConfig, merge
from paddle_merge.checkpoints.config_json import code_files
from paddle_merge.plan.loader_files import loader_files
from tests.support.checkpoints import write

CODE = {"auto_map": {"AutoConfig": "configuration_x.XConfig", "AutoModel": ["modeling_x.X", None]}}


def model(folder: Path, files: dict[str, str], config: dict[str, object] | None = None) -> Path:
    write(folder, {"w": np.ones(4)}, config=config)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


def test_code_processors_and_tokenizers(tmp_path: Path) -> None:
    """Code that the named code imports comes too."""
    wanted = ["configuration_x.py", "modeling_x.py", "layers_x.py", "video_preprocessor_config.json", "tekken.json"]
    wanted += ["qwen.tiktoken", "source.spm", "normalizer.json", "speakers.txt"]
    left = ["optimizer.pt", "trainer_state.json", "notes.txt", "pytorch_model.bin.index.json"]
    left += ["secret.env", "merge_lock.json"]
    config = {
        **CODE,
        "speaker_file": "speakers.txt",
        "x": "secret.env",
        "y": "merge_lock.json",
        "weights_file": "pytorch_model.bin.index.json",
        "up": "../b",
    }
    folder = model(tmp_path / "a", dict.fromkeys([*wanted, *left], "[]"), config)
    found, notes = loader_files(str(folder))
    assert found == sorted([*wanted, "config.json"])
    assert notes == []


def test_code_that_nothing_names_stays(tmp_path: Path) -> None:
    assert loader_files(str(model(tmp_path / "a", {"train.py": ""})))[0] == ["config.json"]
    elsewhere = {"auto_map": {"AutoModel": "owner/name--modeling_x.X"}}
    assert loader_files(str(model(tmp_path / "b", {"train.py": ""}, elsewhere)))[0] == ["config.json"]


@pytest.mark.parametrize("name", ["../x.X", "/x.X", "..x.X", ".x.X", "x", "x."])
def test_code_outside_the_folder_is_not_named(name: str) -> None:
    assert code_files({"auto_map": {"AutoModel": name, "AutoConfig": "a.b.X"}}) == ["a/b.py"]


def test_code_that_is_not_there(tmp_path: Path) -> None:
    folder = model(tmp_path / "a", {"modeling_x.py": ""}, CODE)
    assert loader_files(str(folder))[1] == [
        f"{folder}/config.json names configuration_x.py, which loaders need and which isn't there"
    ]


def test_modules_of_sentence_transformers(tmp_path: Path) -> None:
    files = {"modules.json": json.dumps([{"path": ""}, {"path": "1_Pooling"}, {"path": "dense"}, {"path": "../a"}, 7])}
    files |= {"1_Pooling/config.json": "{}", "dense/config.json": "{}", "dense/model.safetensors": "", "other/x.json": ""}
    found, notes = loader_files(str(model(tmp_path / "a", files)))
    assert found == ["1_Pooling/config.json", "config.json", "dense/config.json", "modules.json"]
    assert len(notes) == 1
    assert "dense holds weights of its own (model.safetensors)" in notes[0]


def test_they_are_in_the_output(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = {"modeling_x.py": "# x", "modules.json": "[]", "1_Pooling/config.json": "{}"}
    paths = [str(model(tmp_path / name, files, CODE)) for name in "ab"]
    logging.getLogger("paddle_merge").propagate = True
    merge(MergeConfig(model_path_list=paths, output_path=str(tmp_path / "out")), progress=False)
    assert {name: (tmp_path / "out" / name).read_text() for name in files} == files
    assert any("names configuration_x.py" in message for message in caplog.messages)
