"""Test how candidates are opened: what a library gets to see of a folder, and which merges share an open model.

A module of the test stands for the library; tests/loaders/test_language_models.py has the libraries.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from paddle_merge.recipe.yaml_read import parse
from paddle_merge.search.candidates import MergedCandidate, stored_candidate
from paddle_merge.search.contract import EvaluationError
from paddle_merge.search.evaluators.libraries import models
from paddle_merge.search.evaluators.libraries.models import Models, ModelSettings, length_of, opened
from paddle_merge.search.merger import Merger
from tests.conversion.test_layout import assert_same, laid_out, llama, stored
from tests.support.checkpoints import read

READ: dict[tuple[str, str], str] = {  # library, layout of a safetensors file -> layout that the library is given
    ("transformers", "hf"): "hf",
    ("transformers", "paddlenlp"): "hf",
    ("transformers", "paddleformers"): "hf",
    ("paddlenlp", "hf"): "hf",
    ("paddlenlp", "paddlenlp"): "paddlenlp",
    ("paddlenlp", "paddleformers"): "hf",
    ("paddleformers", "hf"): "hf",
    ("paddleformers", "paddlenlp"): "hf",
    ("paddleformers", "paddleformers"): "paddleformers",
}


class Given:
    """The candidate is a folder."""

    def __init__(self, folder: Path | str):
        self._folder = str(folder)

    def folder(self) -> str:
        return self._folder


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the libraries' `load` was called with, and what it saw in the folder."""
    seen: list[dict[str, Any]] = []

    def load(folder: str, library: str, layout: str, settings: ModelSettings) -> Any:
        Path(folder, "left_by_the_library.bin").write_bytes(b"x")
        seen.append({"layout": layout, "files": sorted(os.listdir(folder)), "tensors": read(Path(folder)), "folder": folder})
        return SimpleNamespace(length=8)

    for module in ("paddle_models", "torch_models"):
        name = f"paddle_merge.search.evaluators.libraries.{module}"
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(load=load))  # type: ignore[arg-type]
    return seen


@pytest.mark.parametrize(("library", "layout"), READ)
def test_a_library_gets_a_layout_that_it_reads(
    tmp_path: Path, calls: list[dict[str, Any]], library: str, layout: str
) -> None:
    hf = llama(0)
    folder = stored(tmp_path / "model", hf, layout)
    before = sorted(os.listdir(folder))
    opened(Given(folder), library, ModelSettings())
    assert calls[0]["layout"] == READ[library, layout]
    assert_same(calls[0]["tensors"], laid_out(hf, READ[library, layout]))
    assert sorted(os.listdir(folder)) == before
    assert not os.path.exists(calls[0]["folder"])


def test_what_libraries_left_in_a_folder_before_is_not_shown(tmp_path: Path, calls: list[dict[str, Any]]) -> None:
    folder = stored(tmp_path / "model", llama(0), "hf")
    Path(folder, "flex-ckpt.auto_generated.metadata").write_bytes(b"of other weights")
    opened(Given(folder), "paddleformers", ModelSettings())
    assert calls[0]["files"] == ["config.json", "left_by_the_library.bin", "model.safetensors"]


def test_reasons_name_the_folder_and_another_library(
    tmp_path: Path, calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(folder: str, *_: Any) -> Any:
        raise KeyError(f"nothing in\n{folder}")

    folder = stored(tmp_path / "model", llama(0), "hf")
    monkeypatch.setattr(sys.modules["paddle_merge.search.evaluators.libraries.paddle_models"], "load", load)
    monkeypatch.setattr(models, "installed", lambda: ["paddlenlp", "transformers"])
    with pytest.raises(EvaluationError) as caught:
        opened(Given(folder), "paddlenlp", ModelSettings())
    told = f"(KeyError: 'nothing in\\n{folder}'); library: transformers is installed too"
    assert str(caught.value) == f"paddlenlp can't open it {told}"


def test_a_single_file_is_no_language_model(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(EvaluationError, match="needs the folder"):
        opened(Given(tmp_path / "model.safetensors"), "transformers", ModelSettings())


def test_lengths() -> None:
    """At most 2048 tokens, unless more are asked for."""
    assert length_of({"max_position_embeddings": 131072}, ModelSettings()) == 2048
    assert length_of({"n_positions": 1024}, ModelSettings()) == 1024
    assert (
        length_of({"max_position_embeddings": 4096, "text_config": {"max_position_embeddings": 512}}, ModelSettings()) == 512
    )
    assert length_of({"max_position_embeddings": 131072}, ModelSettings(max_length=8192)) == 8192
    assert length_of({}, ModelSettings()) == 2048


# --- merges of the same kind ------------------------------------------------------------------------------------------


class Net:
    """An open model: the arrays of a checkpoint, Linear weights turned, as Paddle has them."""

    length = 8

    def __init__(self, tensors: dict[str, np.ndarray]):
        self.parameters = {name: (value.T if value.ndim == 2 else value).copy() for name, value in tensors.items()}

    def slots(self) -> dict[str, np.ndarray]:
        return self.parameters

    def holds(self, slot: np.ndarray, values: np.ndarray) -> bool:
        return np.array_equal(slot, values)

    def put(self, slot: np.ndarray, values: np.ndarray) -> None:
        slot[:] = values


def test_which_merges_share_an_open_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that differ in weights alone do, from the third on; not one of another dtype, nor one on disk."""
    for number, name in enumerate("ab"):
        stored(tmp_path / name, llama(number), "hf", dtype="float32")
    opened_ones: list[str] = []

    def fake(candidate: MergedCandidate, library: str, settings: ModelSettings) -> Any:
        opened_ones.append(candidate.title)
        return Net({name: value.astype(np.float32) for name, value in read(Path(candidate.folder())).items()})

    monkeypatch.setattr(models, "opened", fake)
    merger, of = Merger(), Models("paddlenlp", ModelSettings())

    def merged(title: str, weight: float, more: str = "") -> MergedCandidate:
        recipe = f"merge_method: linear\n{more}\nmodels:\n- {{model: {tmp_path}/a, parameters: {{weight: {weight}}}}}\n"
        recipe += f"- {{model: {tmp_path}/b, parameters: {{weight: {1 - weight}}}}}\n"
        (tmp_path / title).mkdir()
        return MergedCandidate(title, parse(recipe, title).recipe, merger, str(tmp_path / title))

    candidates = [
        merged("one", 0.5),
        merged("two", 0.25),
        merged("three", 0.75),
        merged("bfloat16", 0.75, "dtype: bfloat16"),
        merged("four", 0.125),
        merged("five", 0.875),
    ]
    for candidate in candidates:
        with of.opened(candidate) as model:
            for name, value in candidate.arrays().items():
                np.testing.assert_array_equal(model.parameters[name], value.T if value.ndim == 2 else value)  # type: ignore[attr-defined]
    assert opened_ones == ["one", "two", "bfloat16", "four", "five"]
    with of.opened(merged("six", 0.375)):
        pass
    monkeypatch.setattr(models, "free_memory", lambda: 1000)
    with of.opened(merged("too large", 0.625)):
        pass
    assert opened_ones[5:] == ["too large"]
    assert stored_candidate(str(tmp_path / "a"), merger, str(tmp_path)).kind == ""
