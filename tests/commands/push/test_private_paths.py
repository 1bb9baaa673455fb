"""Test in which files of an upload paths of this machine are found."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from paddle_merge.commands.push.checks import check
from paddle_merge.commands.push.private_paths import private_paths
from paddle_merge.commands.push.tree import list_tree
from tests.commands.push.test_checks import X
from tests.support.checkpoints import write


@pytest.mark.parametrize(
    ("name", "text", "path"),
    [
        ("merge_lock.json", '{"inputs": {"/gone/me/math": {"size": 3}}}', "/gone/me/math"),
        ("merge_config.json", '{"model_path_list": ["org/name", "/gone/me/math"]}', "/gone/me/math"),
        ("adapter_config.json", '{"base_model_name_or_path": "/gone/me/base"}', "/gone/me/base"),
        ("config.json", '{"_name_or_path": "/gone/me/base"}', "/gone/me/base"),
        ("merge_lora_report.json", '{"adapters": [{"path": "/gone/me/a b"}]}', "/gone/me/a b"),
        ("extract_report.json", '{"tuned": "/gone/me/a"}', "/gone/me/a"),
        ("best.yaml", "models:\n- model: HERE/math\n", "HERE/math"),
        ("search_journal.jsonl", '{"error": "File \\"HERE/x.py\\", line 3"}', "HERE/x.py"),
        ("report.html", "<td>HERE/math</td>", "HERE/math"),
        ("notes.txt", "see HOME/models, which is gone.", "HOME/models"),
        ("README.md", "on https://x.org/a/b and in org/name/file; a/HERE", ""),
        ("run.sh", "#!/usr/bin/env bash\ncat /dev/null > /etc/hosts", ""),
        ("tokenizer_config.json", '{"a": "/gone/api/v1"}', ""),
    ],
)
def test_what_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, path: str) -> None:
    """In records any path, and else those that exist, or are in the user's home."""
    monkeypatch.setenv("HOME", "/home/nobody-of-this-name")
    places = {"HERE": str(tmp_path), "HOME": "/home/nobody-of-this-name"}
    for word, place in places.items():
        text, path = text.replace(word, place), path.replace(word, place)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / name).write_text(text)
    (tmp_path / "model" / "picture.png").write_bytes(f"\xff {tmp_path}".encode("latin-1"))
    assert private_paths(list_tree(str(tmp_path / "model"))) == ({name: path} if path else {})


def test_what_loaders_need_is_to_be_edited(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write(tmp_path / "m", X, config={"_name_or_path": "/gone/me/base"})
    (folder / "README.md").write_text("# m\n")
    (folder / "my notes.txt").write_text(f"{tmp_path}/m\n")
    (folder / "evolve.json").write_text(json.dumps({"path": str(folder)}))
    caplog.set_level(logging.INFO, "paddle_merge")
    check(list_tree(str(folder)), public=True)
    assert caplog.messages == [
        "config.json, evolve.json, my notes.txt name folders of this machine, such as /gone/me/base: whoever may read the"
        " repository sees them; edit config.json; --exclude evolve.json 'my notes.txt' leaves out what no loader needs"
    ]
