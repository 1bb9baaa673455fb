"""Test that a finished file is opened by the libraries of those who load it before a merge counts as done."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_merge import MergeConfig, OutputError, extract_lora, merge
from paddle_merge.checkpoints.formats.header import Held
from paddle_merge.checkpoints.formats.pdparams import header
from paddle_merge.commands.extract_lora.config import ExtractConfig
from paddle_merge.dtypes import BFLOAT16, BY_NAME, FLOAT16, FLOAT32
from paddle_merge.run.output import last_look
from paddle_merge.run.worker import Worker
from tests.support.checkpoints import write

TENSORS = {"w": np.ones((3, 4)), "v": np.ones(5)}
READERS = ["_by_ours", "_by_pickle", "_by_paddle"]


@pytest.mark.parametrize("save_format", ["safetensors", "pdparams"])
@pytest.mark.parametrize("damage", [b"\xff" * 40, b""])
def test_a_header_that_was_damaged_meanwhile(
    tmp_path: Path, save_format: str, damage: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [str(write(tmp_path / name, TENSORS)) for name in "ab"]
    out, close = tmp_path / "out", Worker.close

    def damaged(self: Worker) -> None:
        close(self)
        (file,) = out.glob(f"model*.{save_format}.partial")
        content = file.read_bytes()
        file.write_bytes(damage + content[len(damage) :] if damage else content[:-1])

    monkeypatch.setattr(Worker, "close", damaged)
    with pytest.raises(OutputError, match="was written, but"):
        merge(MergeConfig(model_path_list=paths, output_path=str(out), save_format=save_format), progress=False)
    assert not list(out.glob("*")) or all(path.name.endswith(".partial") for path in out.glob("*"))


@pytest.mark.parametrize(
    ("reader", "save_format"), [("_by_safetensors", "safetensors"), ("_by_ours", "pdparams"), ("_by_pickle", "pdparams")]
)
def test_a_header_of_another_tensor(tmp_path: Path, reader: str, save_format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found: Any = getattr(last_look, reader)
    monkeypatch.delitem(sys.modules, "paddle", raising=False)
    monkeypatch.setattr(last_look, reader, lambda path: {**found(path), "w": ("F16", (3, 4))})
    paths = [str(write(tmp_path / name, TENSORS)) for name in "ab"]
    config = MergeConfig(model_path_list=paths, output_path=str(tmp_path / "out"), save_format=save_format)
    with pytest.raises(OutputError, match="doesn't hold what the plan says of tensor 'w'"):
        merge(config, progress=False)
    assert not (tmp_path / "out").exists()


def test_an_adapter_that_was_damaged_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte of the header, "F32" of lora_A, becomes "F3x"; or the header says another shape."""
    name = "model.layers.0.mlp.up_proj.weight"
    tensors = {name: np.zeros((4, 3)), "model.embed_tokens.weight": np.ones((5, 3))}
    config = {"model_type": "llama", "hidden_size": 3, "intermediate_size": 4, "num_hidden_layers": 1}
    base = str(write(tmp_path / "base", tensors, format="pt", config=config))
    tuned = str(write(tmp_path / "tuned", {**tensors, name: np.eye(4, 3)}, format="pt", config=config))
    found: Any = last_look._by_safetensors
    asked = ExtractConfig(finetuned_path=tuned, base_model_path=base, output_path=str(tmp_path / "out"), rank=2)

    def damaged(path: str) -> Any:
        content = Path(path).read_bytes()
        Path(path).write_bytes(content.replace(b"F32", b"F3x", 1))
        return found(path)

    for changed, words in (
        (damaged, "was written, but the safetensors library can't open it"),
        (lambda _: {}, "doesn't hold"),
    ):
        monkeypatch.setattr(last_look, "_by_safetensors", changed)
        with pytest.raises(OutputError, match=words):
            extract_lora(asked, progress=False)
        assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    extract_lora(asked, progress=False)
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()


def pdparams(file: Path, held: list[Held]) -> None:
    """A .pdparams file whose elements are a hole in the file: it takes no room on the disk."""
    made = header(held, None)
    with file.open("wb") as stream:
        for offset, text in made.pieces:
            stream.seek(offset)
            stream.write(text)


HELD = [
    Held("a", BFLOAT16, (300, 200), 120000),
    Held("b", FLOAT16, (2, 3), 12),
    Held("c", FLOAT32, (), 4),
    Held("d", BY_NAME["bool"], (0, 5), 0),
    Held("e", BY_NAME["int64"], (70000,), 560000),
]


@pytest.mark.parametrize("reader", READERS)
def test_what_readers_of_pdparams_find(tmp_path: Path, reader: str) -> None:
    if reader == "_by_paddle":
        pytest.importorskip("paddle")
    pdparams(tmp_path / "x", HELD)
    shapes = {
        "a": ("BF16", (300, 200)),
        "b": ("F16", (2, 3)),
        "c": ("F32", ()),
        "d": ("BOOL", (0, 5)),
        "e": ("I64", (70000,)),
    }
    found = getattr(last_look, reader)(str(tmp_path / "x"))
    assert {name: (tag, tuple(shape)) for name, (tag, shape) in found.items()} == shapes


@pytest.mark.parametrize("reader", READERS[1:])
@pytest.mark.parametrize("cut", [1, 5, 300000, 560100])
def test_a_cut_file(tmp_path: Path, reader: str, cut: int) -> None:
    if reader == "_by_paddle":
        pytest.importorskip("paddle")
    pdparams(tmp_path / "x", HELD)
    content = (tmp_path / "x").read_bytes()
    (tmp_path / "x").write_bytes(content[:-cut])
    with pytest.raises(OutputError, match=r"was written, but paddle\.load can't open it \("):
        getattr(last_look, reader)(str(tmp_path / "x"))


def test_names_that_the_table_has_alone(tmp_path: Path) -> None:
    """paddle.load fails at them, with a KeyError."""
    pdparams(tmp_path / "x", HELD)
    content = (tmp_path / "x").read_bytes()
    name = b"X\x01\0\0\0"
    (tmp_path / "y").write_bytes(content.replace(name + b"c" + name + b"c", name + b"z" + name + b"c"))
    with pytest.raises(OutputError, match="KeyError"):
        last_look._by_pickle(str(tmp_path / "y"))


def test_elements_are_not_read_and_take_no_memory(tmp_path: Path) -> None:
    """Of 8 GiB in 4 tensors, in a process of its own; the file is a hole."""
    if resource.getpagesize() > 1 << 16:
        pytest.skip("a header may share a page with elements")
    pdparams(tmp_path / "x", [Held(f"w{number}", FLOAT32, (1 << 14, 1 << 15), 1 << 31) for number in range(4)])
    code = (
        "import resource, sys; from paddle_merge.run.output.last_look import _by_pickle\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "assert len(_by_pickle(sys.argv[1])) == 4\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "x")], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 8 << 10  # KiB
