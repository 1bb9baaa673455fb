"""Test which files of a folder are pushed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from paddle_merge import CheckpointError, ConfigError
from paddle_merge.commands.push.tree import list_tree


def make(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def test_what_is_left_out_and_why(tmp_path: Path) -> None:
    pushed = ["1_Pooling/config.json", "README.md", "a[1].json", "config.json", "model.safetensors", "scheduler_notes.md"]
    training = [
        "optimizer.pdopt",
        "Optimizer.pt",
        "scheduler.pt",
        "rng_state_0.pth",
        "training_args.bin",
        "trainer_state.json",
    ]
    training += ["master_weights-00001-of-00002.safetensors", "checkpoint-500/model.safetensors"]
    others = {
        ".git/config": "hidden",
        ".env": "hidden",
        "runs/events.out.tfevents.1": "log of training",
        "train.log": "log of training",
        "__pycache__/modeling.pyc": "compiled code",
        "config.json~": "temporary file",
        "model.safetensors.partial": "temporary file",
        "id_rsa.pub": "may hold a secret",
        "server.PEM": "may hold a secret",
        "token": "may hold a secret",
        "prod.env": "may hold a secret",
    }
    tree = list_tree(str(make(tmp_path, *pushed, *training, *others)))
    assert list(tree.files) == sorted(pushed)
    assert tree.files["README.md"] == len("README.md")
    assert tree.nbytes == sum(map(len, pushed))

    def top(name: str) -> str:
        return f"{name.partition('/')[0]}/" if "/" in name else name

    assert tree.left_out == {top(name): "state of training" for name in training} | {
        top(name): why for name, why in others.items()
    }


def test_exclude(tmp_path: Path) -> None:
    """Names, paths and folders; a pattern that matches nothing is a mistake."""
    folder = str(make(tmp_path, "a.png", "deep/b.png", "deep/c.txt", "notes/d.txt", "e.txt"))
    tree = list_tree(folder, ["*.png", "notes", "deep/c.*"])
    assert list(tree.files) == ["e.txt"]
    assert tree.left_out == dict.fromkeys(["a.png", "deep/b.png", "deep/c.txt", "notes/"], "--exclude")
    with pytest.raises(ConfigError, match=r"--exclude '\*.jpg' matches no file or folder in "):
        list_tree(folder, ["*.png", "*.jpg"])


def test_links(tmp_path: Path) -> None:
    """Those to files of the folder are files; those to folders are left out; those to elsewhere or nothing are mistakes."""
    folder = make(tmp_path / "model", "config.json", "deep/weights")
    make(tmp_path / "other", "secrets")
    (folder / "model.safetensors").symlink_to("deep/weights")
    (folder / "folder").symlink_to(tmp_path / "other")
    tree = list_tree(str(folder))
    assert tree.files == {"config.json": 11, "deep/weights": 12, "model.safetensors": 12}
    assert tree.left_out == {"folder/": "a link to a folder"}
    (folder / "gone").symlink_to(tmp_path / "nowhere")
    (folder / "notes.txt").symlink_to(tmp_path / "other" / "secrets")
    (folder / "two\nlines").write_text("")
    os.mkfifo(folder / "pipe")
    with pytest.raises(CheckpointError) as caught:
        list_tree(str(folder))
    assert caught.value.problems == [
        f"{folder}/gone: is no file, or a link whose target doesn't exist; remove or --exclude it",
        f"{folder}/notes.txt: is a link to {tmp_path}/other/secrets, outside of {folder}; put a copy there or --exclude it",
        f"{folder}/pipe: is no file, or a link whose target doesn't exist; remove or --exclude it",
        f"{folder}/two\\nlines: no hub takes a file or folder of this name; rename or --exclude it",
    ]
    tree = list_tree(str(folder), ["gone", "notes.txt", "pipe", "two*"])
    assert tree.left_out["notes.txt"] == "--exclude"


def test_a_snapshot_in_the_cache(tmp_path: Path) -> None:
    """Its links lead to the blobs beside it."""
    model = make(tmp_path / "models--me--x", "blobs/abc")
    snapshot = make(model / "snapshots" / "123", "config.json")
    (snapshot / "model.safetensors").symlink_to("../../blobs/abc")
    assert list_tree(str(snapshot)).files == {"config.json": 11, "model.safetensors": 9}
    (snapshot / "other").symlink_to(make(tmp_path / "models--me--y", "blobs/abc") / "blobs" / "abc")
    with pytest.raises(CheckpointError, match="is a link to"):
        list_tree(str(snapshot))


def test_names_of_files(tmp_path: Path) -> None:
    """Any printable or not, but control characters and what is not UTF-8; and only of files that are pushed."""
    names = ["\u200bzero width", "soft\u00adhyphen", "\u6a21\u578b", "no\u00a0break"]
    tree = list_tree(str(make(tmp_path, *names, ".hid\nden")))
    assert sorted(tree.files) == sorted(names)
    (tmp_path / os.fsdecode(b"\xff")).write_text("")
    with pytest.raises(CheckpointError, match="no hub takes a file or folder of this name"):
        list_tree(str(tmp_path))
