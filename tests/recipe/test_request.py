"""Test that a request is read once: later changes of its files or its config change nothing."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from paddle_merge import ConfigError, MergeConfig, merge
from paddle_merge.plan.planner import make_plan
from paddle_merge.recipe.request import Request
from paddle_merge.run import merge as merging
from tests.support.checkpoints import write

FIRST = "merge_method: linear\nmodels:\n- model: a\n  parameters: {weight: 3}\n- model: b\n  parameters: {weight: 1}\n"
SECOND = FIRST.replace("weight: 3", "weight: 7")


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of a recipe file that merges the models a and b beside it."""
    monkeypatch.chdir(tmp_path)
    for name, value in (("a", 1.0), ("b", 2.0)):
        write(tmp_path / name, {"w": np.full((4, 4), value)})
    path = tmp_path / "recipe.yaml"
    path.write_text(FIRST)
    return path


def written(folder: str) -> dict[str, bytes]:
    """All files of a merge's output, the output's own path left out."""
    files = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    record = json.loads(files.pop("merge_config.json"))
    del record["output_path"], files["merge_lock.json"], files["README.md"]
    return {**files, "record": json.dumps(record).encode()}


@pytest.mark.parametrize("change", [lambda path: path.write_text(SECOND), Path.unlink], ids=["edited", "deleted"])
def test_a_recipe_that_changes_while_the_merge_is_planned(
    change: Callable[[Path], object], recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge(MergeConfig(recipe_yaml=str(recipe), output_path="undisturbed"), progress=False)

    def planned(*args: object, **named: object) -> object:
        change(recipe)
        return make_plan(*args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(merging, "make_plan", planned)
    merge(MergeConfig(recipe_yaml=str(recipe), output_path="out"), progress=False)
    assert written("out") == written("undisturbed")
    assert "weight: 3" in json.loads(Path("out/merge_config.json").read_text())["recipe_yaml"]


def test_a_request_stays_as_it_was_made(recipe: Path) -> None:
    config = MergeConfig(recipe_yaml=str(recipe), copy_file_list=["vocab.txt"])
    request = Request.of(config)
    before = request.recipe, dict(request.record), request.copied_files
    recipe.unlink()
    config.recipe_yaml, config.out_dtype = "other.yaml", "bfloat16"
    (config.copy_file_list or []).append("merges.txt")
    assert (request.recipe, request.record, request.copied_files) == before
    with pytest.raises(dataclasses.FrozenInstanceError):
        request.output = "elsewhere"  # type: ignore[misc]


def test_a_request_lists_all_problems(recipe: Path) -> None:
    request = Request.of(MergeConfig(model_path_list=["a", "b"], n_process=0, reserve_p=2.0, merge_method="ties"))
    assert request.recipe is None
    assert [problem.split()[0] for problem in request.problems] == ["--n_process", "--reserve_p"]
    with pytest.raises(ConfigError, match="--n_process 0 must be at least 1"):
        request.checked_recipe()


@pytest.mark.parametrize("memory", [float("inf"), float("nan")])
def test_device_memory_that_is_no_number(memory: float) -> None:
    request = Request.of(MergeConfig(model_path_list=["a", "b"], max_tensor_mem=memory))
    assert any(problem.startswith("--max_tensor_mem must be finite") for problem in request.problems)


@pytest.mark.parametrize("method", ["ties", "task_arithmetic", "breadcrumbs"])
def test_a_flag_that_is_not_finite_is_a_problem_whatever_the_method(method: str) -> None:
    config = MergeConfig(model_path_list=["a", "b"], base_model_path="base", merge_method=method, scale=float("nan"))
    with pytest.raises(ConfigError, match="--scale must be finite"):
        Request.of(config).checked_recipe()
