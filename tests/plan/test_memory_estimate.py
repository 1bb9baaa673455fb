"""Test that no method needs more memory than announced, measured in real processes.

What is announced must not grow with the tensor, except for what a method declares to keep per element or per matrix.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import psutil
import pytest

from paddle_merge import MergeConfig
from paddle_merge.methods.registry import find
from paddle_merge.plan.memory_estimate import memory
from paddle_merge.plan.plan import Plan
from paddle_merge.plan.planner import make_plan
from paddle_merge.recipe.request import Request
from paddle_merge.run.job import Job
from paddle_merge.run.worker import Worker
from tests.methods.test_laws import LAWS
from tests.support.checkpoints import to_bits
from tests.support.checkpoints import write as written
from tests.support.processes import memory_of
from tests.support.sweeps import few

TILE = 1 << 20
SMALL, LARGE = (1 << 13, 1 << 10), (1 << 15, 1 << 10)  # 8 M and 32 M elements: kept in memory to be read again, and not
# Bytes for each element of each model that aren't the blocks': bits of what is kept. Some methods hold a whole matrix.
BITS = {"della": 1 / 8, "della_linear": 1 / 8}
WHOLE = ("tsv", "iso_c", "safe_merge")
# One method for each way in which memory is held while a tensor is merged, but for those.
MEASURED = (
    *("linear", "slerp", "ties", "dare_ties", "della", "breadcrumbs", "nuslerp", "karcher", "model_stock", "nearswap"),
    *("ram", "sce", "arcee_fusion", "consensus_ta", "paddlenlp:slerp", "paddlenlp:della", "paddlenlp:trim+slerp"),
)
LINES = 1 << 8  # bytes, at most, of each line and model
SLACK = 1 << 20


def write(folder: Path, shape: tuple[int, int], seed: int | None) -> str:
    """A checkpoint of one bfloat16 tensor: a random tile again and again, or without a seed a hole that takes no space."""
    folder.mkdir()
    header = {"w": {"dtype": "BF16", "shape": shape, "data_offsets": [0, 2 * shape[0] * shape[1]]}}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (folder / "config.json").write_text("{}")
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        if seed is None:
            file.truncate(8 + len(text) + 2 * shape[0] * shape[1])
            return str(folder)
        values = np.random.default_rng(0).standard_normal(TILE) + 0.1 * np.random.default_rng(seed).standard_normal(TILE)
        tile = to_bits(values, "bfloat16").tobytes()
        for _ in range(shape[0] * shape[1] // TILE):
            file.write(tile)
    return str(folder)


@pytest.fixture(scope="module")
def headers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of either size a base and three models, of which only the headers are there."""
    root = tmp_path_factory.mktemp("headers")
    for name in ("base", "a", "b", "c"):
        write(root / f"small {name}", SMALL, None)
        write(root / f"large {name}", LARGE, None)
    return root


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("large")
    for seed, name in enumerate(("base", "a", "b", "c")):
        write(root / f"large {name}", LARGE, seed)
    return root


def recipe(method: str, folder: Path, size: str) -> tuple[str, int]:
    """And how many models it has."""
    found = find(method)
    assert found is not None
    count = min(3, found.most or 3) - (found.base == "first")
    listed = "".join(f"  - model: {folder}/{size} {name}\n" for name in "abc"[:count])
    base = f"base_model: {folder}/{size} base\n" if found.base != "model" else ""
    return f"merge_method: {method}\n{base}models:\n{listed}parameters: {LAWS[method].given}\n", count


def announced(method: str, folder: Path, size: str) -> int:
    config = MergeConfig(recipe_yaml=recipe(method, folder, size)[0], output_path="out")
    return memory(make_plan(Request.of(config).checked_recipe(), 1))


def peak_of(command: list[str]) -> int:
    """Bytes that all its processes hold, at most, looked at every few milliseconds."""
    peak = 0
    with psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        while process.poll() is None:
            peak = max(peak, memory_of(process.pid))
            time.sleep(0.03)  # a look takes a core that merges
        assert process.returncode == 0, process.stderr.read().decode()
    return peak


@pytest.mark.parametrize("method", LAWS)
def test_what_is_announced_does_not_grow_with_the_tensor(headers: Path, method: str) -> None:
    _, models = recipe(method, headers, "large")
    more = LARGE[0] * LARGE[1] - SMALL[0] * SMALL[1]
    allowed = SLACK + models * (BITS.get(method, 0) * more + LINES * (LARGE[0] - SMALL[0]))
    grows = announced(method, headers, "large") - announced(method, headers, "small")
    assert grows <= allowed or method in WHOLE


@pytest.mark.parametrize(
    ("method", "own"),
    few(
        [
            ("della", "density: 0.5"),
            ("paddlenlp:ties", ""),
            ("dare_ties", "density: 0.5"),
            ("task_arithmetic", ""),
            ("paddlenlp:della", ""),
            ("breadcrumbs", "density: 0.5"),
        ],
        unpack=True,
    ),
)
@pytest.mark.parametrize("size", few([128, 1, 1 << 14, 20_000]))
def test_small_tensors_are_announced_as_they_are_merged(tmp_path: Path, size: int, method: str, own: str) -> None:
    """Together: more of them than are merged as one, of as many models that what each takes counts."""
    random = np.random.default_rng(0)

    def plan_of(count: int, size: int) -> Plan:
        paths = []
        for number in range(13):
            tensors = {f"{name}": random.standard_normal(size) for name in range(count)}
            paths.append(written(tmp_path / f"{count} {number}", tensors, "float32"))
        its = ", ".join(["weight: 1.0", *[own] * bool(own)])
        listed = "".join(f"  - model: {path}\n    parameters: {{{its}}}\n" for path in paths[1:])
        text = f"merge_method: {method}\nbase_model: {paths[0]}\nmodels:\n{listed}"
        return make_plan(Request.of(MergeConfig(recipe_yaml=text, output_path="out")).checked_recipe(), 1)

    def of_one_worker(plan: Plan) -> int:
        return memory(dataclasses.replace(plan, n_process=2)) - memory(plan)

    def peak(plan: Plan) -> int:
        worker = Worker(Job(None), lambda _: None)
        pieces = [(plan.tensors[piece.tensor], piece) for piece in plan.pieces]
        tracemalloc.start()
        for _ in worker.merge_all(pieces):
            pass
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        worker.close()
        return found

    nothing, many = plan_of(1, 0), plan_of(min(300, (1 << 16) // size), size)
    peak(many)  # loads what is loaded once
    taken, said = peak(many), of_one_worker(many) - of_one_worker(nothing)
    assert taken <= said <= 4 * taken + (8 << 20)


@pytest.mark.exhaustive  # seconds each; test_faults.py has a merge that keeps below a ceiling
@pytest.mark.parametrize("method", MEASURED)
def test_no_more_than_is_announced(large: Path, tmp_path: Path, method: str) -> None:
    """Whole matrices, which would take minutes here, are held to what they announce by test_whole_matrix.py."""
    text, _ = recipe(method, large, "large")
    (tmp_path / "recipe.yaml").write_text(text)
    command = [sys.executable, "-m", "paddle_merge", str(tmp_path / "recipe.yaml"), "--quiet", "--n_process", "1"]
    peak = peak_of([*command, "--output_path", str(tmp_path / "out")])
    shutil.rmtree(tmp_path / "out")
    assert 60_000_000 < peak < announced(method, large, "large")
