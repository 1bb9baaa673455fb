"""Test names at Hugging Face, with the real huggingface_hub and a server on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from paddle_merge import CheckpointError, MergeConfig, merge
from paddle_merge.checkpoints import hub
from paddle_merge.checkpoints.adapters import open_adapter
from paddle_merge.checkpoints.open import open_checkpoint
from tests.support.checkpoints import read, write
from tests.support.hub_server import TOKEN, Answer
from tests.support.huggingface_server import HuggingFaceServer, use

NAME = "model.layers.0.self_attn.q_proj.weight"
X = {NAME: np.arange(12.0).reshape(3, 4), "model.norm.weight": np.arange(5.0)}
A, B = np.array([[1.0, 0.0, 2.0, 0.0]]), np.array([[1.0], [2.0], [3.0]])
BESIDE = {"tokenizer.json": b"{}", "optimizer.pt": b"large", "pytorch_model.bin": b"the same, again", "README.md": b"a card"}


@pytest.fixture(autouse=True)
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HuggingFaceServer]:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(hub, "LIBRARIES", ("huggingface_hub",))
    with HuggingFaceServer() as made:
        use(monkeypatch, made.address, tmp_path / "home")
        yield made


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def adapter(tmp_path: Path) -> dict[str, bytes]:
    stem = f"base_model.model.{NAME.removesuffix('.weight')}"
    held = files(write(tmp_path / "adapter", {f"{stem}.lora_A.weight": A, f"{stem}.lora_B.weight": B}))
    config = json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 2, "target_modules": ["q_proj"]})
    weights = held["model.safetensors"]
    return {"adapter_model.safetensors": weights, "adapter_config.json": config.encode(), "optimizer.pt": b"large"}


@pytest.mark.parametrize("shards", [1, 2])
def test_only_what_is_read_is_downloaded(tmp_path: Path, server: HuggingFaceServer, shards: int) -> None:
    server.add("me/x", files(write(tmp_path / "x", X, shards=shards, config={"model_type": "llama"})) | BESIDE)
    write(tmp_path / "y", {name: 3 * values for name, values in X.items()})
    merge(MergeConfig(model_path_list=["me/x", str(tmp_path / "y")], output_path="out"))
    assert read(Path("out"))[NAME].tolist() == (2 * X[NAME]).tolist()
    assert json.loads(Path("out/merge_config.json").read_text())["model_path_list"] == ["me/x", str(tmp_path / "y")]
    assert Path("out/tokenizer.json").read_bytes() == b"{}"
    whole = ["model.safetensors"]
    parts = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
    assert server.files_asked() == sorted(["README.md", "config.json", "tokenizer.json", *(parts if shards == 2 else whole)])


def test_a_revision(tmp_path: Path, server: HuggingFaceServer) -> None:
    server.add("me/x", files(write(tmp_path / "x", X)))
    server.add("me/x", files(write(tmp_path / "y", {NAME: X[NAME]})), branch="v2")
    assert open_checkpoint("me/x").tensors.keys() == X.keys()
    assert open_checkpoint("me/x@v2").tensors.keys() == {NAME}
    commit = server.sha(server.repositories["me/x"].branches["v2"])
    assert open_checkpoint(f"me/x@{commit}").tensors.keys() == {NAME}


@pytest.mark.parametrize("how", ["offline", "no network", "no answer"])
def test_from_the_cache(
    tmp_path: Path, server: HuggingFaceServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    """Everything but the tokenizer, which wasn't fetched: a warning says so."""
    server.add("me/x", files(write(tmp_path / "x", X, shards=2, config={"a": 1})))
    folder = open_checkpoint("me/x").folder
    server.add("me/x", {"tokenizer.json": b"{}"})
    if how == "no answer":
        server.fails = 503
    else:
        address = "http://127.0.0.1:9" if how == "no network" else server.address
        use(monkeypatch, address, tmp_path / "home", offline=how == "offline")
    caplog.clear()
    again = open_checkpoint("me/x")
    assert (again.path, again.folder) == ("me/x", folder)
    assert again.tensors.keys() == X.keys()
    (warning,) = [one.message for one in caplog.records if one.levelname == "WARNING"]
    assert warning.startswith(f"me/x: only the config and tokenizer files that are in {folder} already are used (")
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint("me/other")
    (problem,) = caught.value.problems
    reason = {"offline": "OfflineModeIsEnabled", "no network": "Connect", "no answer": "503"}[how]
    assert problem.startswith("me/other: no such file or folder, and huggingface_hub can't fetch a model with this name (")
    assert reason in problem
    assert problem.endswith("; check the name and the network, or give the path of a local copy")


def test_an_adapter(tmp_path: Path, server: HuggingFaceServer) -> None:
    """W + 2 B A, from two names; each repository gives only its own files."""
    server.add("me/x", files(write(tmp_path / "x", X, config={"model_type": "llama"})) | BESIDE)
    server.add("me/lora", adapter(tmp_path))
    merge(MergeConfig(model_path_list=["me/x", "me/x+me/lora"], weight_list=[0.0, 1.0], output_path="out"))
    assert read(Path("out"))[NAME].tolist() == (X[NAME] + 2 * B @ A).tolist()
    asked = [one.path.split("/resolve/main/")[1] for one in server.asked("HEAD", "^/me/lora/")]
    assert sorted(set(asked)) == ["adapter_config.json", "adapter_model.safetensors"]
    asked = [one.path for one in server.asked("GET", "^/api/models/")]
    assert asked == ["/api/models/me/x", "/api/models/me/lora"]  # once each: both models are of the same revision
    found = open_adapter("me/lora")
    assert (found.path, found.kind) == ("me/lora", "peft")
    with pytest.raises(CheckpointError, match=r"it is a LoRA adapter: write the model it was trained on and a \+"):
        open_checkpoint("me/lora")


def test_what_may_not_be_read(tmp_path: Path, server: HuggingFaceServer, monkeypatch: pytest.MonkeyPatch) -> None:
    held = files(write(tmp_path / "x", X))
    server.add("me/x", held)
    server.add("me/hidden", held, private=True)
    for name, reason in {
        "me/none": "there is none, or it is private; to log in, run `hf auth login` or set HF_TOKEN",
        "me/hidden": "there is none, or it is private; to log in, run `hf auth login` or set HF_TOKEN",
        "me/x@v3": "the model has no revision v3",
    }.items():
        with pytest.raises(CheckpointError) as caught:
            open_checkpoint(name)
        assert f"can't fetch a model with this name ({reason}); check" in str(caught.value)
    use(monkeypatch, server.address, tmp_path / "home", token=TOKEN)
    assert open_checkpoint("me/hidden").tensors.keys() == X.keys()
    gated = Answer(403, {"error": "gated"}, {"X-Error-Code": "GatedRepo"})
    monkeypatch.setattr(server, "_routes", [("HEAD", "/me/x/resolve/.*", lambda _: gated), *server._routes])
    with pytest.raises(CheckpointError, match="its owner has to grant access: ask for it on the model's page"):
        open_checkpoint("me/x")


def test_the_token_stays_secret(tmp_path: Path, server: HuggingFaceServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if the server sends it back."""
    use(monkeypatch, server.address, tmp_path / "home", token=TOKEN)
    server.fails = 418
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint("me/x")
    assert "418" in str(caught.value)
    assert TOKEN not in str(caught.value)
