"""Test how many workers `--n_process auto` starts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from paddle_merge.plan import memory_estimate
from paddle_merge.plan.plan import WORKER_BYTES, suited
from paddle_merge.plan.planner import make_plan
from paddle_merge.recipe.yaml_read import parse
from tests.support.checkpoints import write


@pytest.mark.parametrize(
    ("nbytes", "most", "ranks", "expected"),
    [
        (0, 8, 1, 1),
        (WORKER_BYTES - 1, 8, 1, 1),
        (3 * WORKER_BYTES, 8, 1, 3),
        (100 * WORKER_BYTES, 8, 1, 8),
        (100 * WORKER_BYTES, 8, 2, 4),
        (100 * WORKER_BYTES, 1, 4, 1),
    ],
)
def test_as_many_as_are_worth_while(nbytes: int, most: int, ranks: int, expected: int) -> None:
    tensor: Any = SimpleNamespace(traffic=nbytes)
    assert suited([tensor], most, ranks) == expected


def test_traffic_is_what_is_read_and_written(tmp_path: Path) -> None:
    """By hand: 6 elements, of 4 bytes in two models and the base, and of 2 in the output."""
    for name in "abc":
        write(tmp_path / name, {"w": np.ones((2, 3))}, format="pt")
    models = "".join(f"- model: {tmp_path}/{name}\n" for name in "ab")
    recipe = f"merge_method: ties\nbase_model: {tmp_path}/c\nmodels:\n{models}parameters: {{weight: 1.0}}\ndtype: bfloat16\n"
    plan = make_plan(parse(recipe, "r.yaml").recipe)
    assert plan.tensors[0].traffic == 6 * (3 * 4 + 2)
    assert plan.traffic(plan.pieces[0]) == 6 * (3 * 4 + 2)


def test_as_many_as_memory_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of what is free; one worker is there in any case."""
    for name in "ab":
        write(tmp_path / name, {f"layers.{layer}.w": np.ones((2, 2)) for layer in range(4)}, format="pt")
    models = "".join(f"- model: {tmp_path}/{name}\n" for name in "ab")
    text = f"merge_method: linear\nparameters: {{weight: 1}}\nmodels:\n{models}"
    plan = make_plan(parse(text, "r.yaml").recipe, n_process=4)
    assert plan.n_process == 4
    need = memory_estimate.memory(plan)
    for free, expected in ((2 * need, 4), (2 * need - 2, 3), (0, 1)):
        monkeypatch.setattr(memory_estimate, "free_memory", lambda free=free: free)
        assert memory_estimate.fitting(plan).n_process == expected
