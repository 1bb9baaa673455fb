"""The models that tests of recipes merge."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.recipes import model


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Models a, b, c, of one architecture, and a deeper one."""
    for seed, name in enumerate(("a", "b", "c")):
        model(tmp_path / name, seed)
    model(tmp_path / "deep", 9, layers=6)
    monkeypatch.chdir(tmp_path)
    return tmp_path
