"""Test the callbacks in real trainings of tiny models with the Trainers of PaddleNLP and PaddleFormers, on the CPU.

Each training is killed after step 5 and goes on from checkpoint-4, with save_total_limit=1. What the callbacks write is
opened by from_pretrained, and by a Trainer that goes on from it; both must have the weights that follow by hand from those
after every step. test_loaders.py says what these tests need; PaddleNLP's environment also needs numba.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import libraries
from tests.support.libraries import ABSENT, SCRIPTS, VARIABLES

pytestmark = [
    pytest.mark.loaders,
    pytest.mark.skipif(bool(ABSENT), reason=f"no interpreter is named by {', '.join(ABSENT)}"),
]

CONFIG = {
    **{"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "max_position_embeddings": 32},
}
UNIFIED: dict[str, dict[str, Any]] = {
    "paddlenlp": {"unified_checkpoint": True},
    "paddleformers": {"save_checkpoint_format": "unified_checkpoint", "load_checkpoint_format": "unified_checkpoint"},
}
STEPS = 8
# Steps -> their weights in the average, by the formulas in paddle_merge/recipe/decay.py and training/ema.py.
AVERAGE = {2: 0.5, 4: 0.2071067812, 6: 0.1589186225, 8: 0.1339745962}  # 1-sqrt
WINDOW = {4: 0.25, 6: 0.5, 8: 0.25}  # cosine
EMA = {step: 0.2 * 0.8 ** (STEPS - step) / (1 - 0.8**STEPS) for step in range(1, STEPS + 1)}
State = dict[str, np.ndarray]


def callbacks(base: Path) -> list[list[Any]]:
    return [
        ["average", {"last": 4, "decay": "1-sqrt"}],
        ["ema", {"decay": 0.8}],
        ["window", {"steps": 5, "every": 2, "decay": "cosine"}],
        ["merge", {"reference": str(base), "toward_aligned": 0.7}],
    ]


def run(library: str, folder: Path, tasks: list[dict[str, Any]]) -> None:
    (folder / "job.json").write_text(json.dumps(tasks))
    libraries.run({library: ["train.py", library, str(folder / "job.json")]}, fresh=True)


def weights(file: Path) -> State:
    with np.load(file) as opened:
        return {name: array.astype(np.float64) for name, array in opened.items()}


def at_steps(file: Path) -> dict[int, State]:
    found: dict[int, State] = {}
    for name, array in weights(file).items():
        step, _, tensor = name.partition("/")
        found.setdefault(int(step), {})[tensor] = array
    return found


def mean(states: dict[int, State], shares: dict[int, float]) -> State:
    assert sum(shares.values()) == pytest.approx(1)
    return {name: sum(share * states[step][name] for step, share in shares.items()) for name in states[STEPS]}


def same(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, atol=3e-7, err_msg=name)


@pytest.mark.parametrize(
    ("library", "form", "lora"),
    [
        ("paddlenlp", "default", False),
        ("paddlenlp", "unified", True),
        ("paddleformers", "default", True),
        ("paddleformers", "unified", False),
        ("paddleformers", "default", False),
    ],
)
def test_trainings_are_averaged_and_merged(library: str, form: str, lora: bool, tmp_path: Path) -> None:
    base, output = tmp_path / "base", tmp_path / "run"
    settings = {"save_total_limit": 1, **(UNIFIED[library] if form == "unified" else {})}
    common = {"output": str(output), "config": CONFIG, "settings": settings, "lora": lora, "base": str(base)}
    both = {"do": "train", "callbacks": callbacks(base), **common}
    tasks = [
        {**both, "stop": 5, "snapshots": str(tmp_path / "first.npz")},
        {**both, "resume": str(output / "checkpoint-4"), "snapshots": str(tmp_path / "second.npz")},
        {"do": "load", "folder": str(base), "weights": str(tmp_path / "base.npz"), "config": CONFIG},
    ]
    for name in ("average", "ema", "window", "merged"):
        adapter, folder = lora and name != "merged", str(output / name)
        load = {"do": "load", "folder": folder, "weights": str(tmp_path / f"{name}-loaded.npz"), "config": CONFIG}
        tasks.append({**load, "lora": adapter, "base": str(base)})
        if adapter or not lora:  # a whole model is not what a training of an adapter goes on from
            again = {**common, "output": str(tmp_path / "again"), "settings": {**settings, "max_steps": STEPS + 2}}
            tasks.append({"do": "resume", "folder": folder, "weights": str(tmp_path / f"{name}-resumed.npz"), **again})
    run(library, tmp_path, tasks)

    assert {path.name for path in output.iterdir()} >= {"average", "ema", "window", "merged", "checkpoint-8"}
    assert [path.name for path in output.glob("checkpoint-*")] == ["checkpoint-8"]
    states = at_steps(tmp_path / "first.npz")
    states = {step: states[step] for step in range(1, 5)} | at_steps(tmp_path / "second.npz")
    for name, shares in {"average": AVERAGE, "ema": EMA, "window": WINDOW}.items():
        same(weights(tmp_path / f"{name}-loaded.npz"), mean(states, shares))
        same(weights(tmp_path / f"{name}-resumed.npz"), mean(states, shares))
    merged = weights(tmp_path / "merged-loaded.npz")
    before, last = weights(tmp_path / "base.npz"), states[STEPS]
    if lora:
        last = {name: folded(last, name) for name in before}
    same(merged, {name: before[name] + 0.7 * (last[name] - before[name]) for name in before})
    if not lora:
        same(weights(tmp_path / "merged-resumed.npz"), merged)


def folded(state: State, name: str) -> np.ndarray:
    """Return a weight with its adapter: r is 4 and alpha 8."""
    prefix = "" if name in state else "model."
    stem = prefix + name.removesuffix(".weight")
    weight = state[prefix + name]
    return weight + 2.0 * state[f"{stem}.lora_A"] @ state[f"{stem}.lora_B"] if f"{stem}.lora_A" in state else weight


@pytest.mark.parametrize("library", UNIFIED)
def test_adapters_are_averaged_exactly_with_their_base(library: str, tmp_path: Path) -> None:
    base, output = tmp_path / "base", tmp_path / "run"
    task = {"output": str(output), "config": CONFIG, "settings": {"save_total_limit": 1}, "lora": True}
    load = {"do": "load", "config": CONFIG}
    average = ["average", {"last": 4, "decay": "1-sqrt", "base": str(base)}]
    run(
        library,
        tmp_path,
        [
            {**load, "folder": str(base), "weights": str(tmp_path / "base.npz"), "base": str(base), "lora": None},
            {"do": "train", **task, "base": str(base), "callbacks": [average], "snapshots": str(tmp_path / "all.npz")},
            {**load, "folder": str(output / "average"), "weights": str(tmp_path / "average.npz")},
        ],
    )
    states = at_steps(tmp_path / "all.npz")
    names = weights(tmp_path / "base.npz")
    whole = {step: {name: folded(state, name) for name in names} for step, state in states.items()}
    same(weights(tmp_path / "average.npz"), mean(whole, AVERAGE))


@pytest.mark.parametrize("library", UNIFIED)
def test_two_ranks(library: str, tmp_path: Path) -> None:
    """Not of PaddleFormers' flex checkpoints: on the CPU its Trainer saves them in one process only."""
    base, output = tmp_path / "base", tmp_path / "run"
    settings: dict[str, Any] = {"save_total_limit": 1, "max_grad_norm": 0, **UNIFIED[library]}
    task = {"output": str(output), "config": CONFIG, "settings": settings}
    run(
        library,
        tmp_path,
        [{"do": "load", "folder": str(base), "weights": str(tmp_path / "b.npz"), "config": CONFIG, "base": str(base)}],
    )
    job = {"do": "train", **task, "callbacks": callbacks(base), "snapshots": str(tmp_path / "all-{rank}.npz")}
    (tmp_path / "job.json").write_text(json.dumps([job]))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [os.environ[VARIABLES[library]], "-m", "paddle.distributed.launch", "--nproc_per_node", "2"]
    command += ["--log_dir", str(tmp_path / "log"), str(SCRIPTS / "train.py"), library, str(tmp_path / "job.json")]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:]
    loads = [
        {"do": "load", "folder": str(output / name), "weights": str(tmp_path / f"{name}.npz"), "config": CONFIG}
        for name in ("average", "ema", "window", "merged")
    ]
    run(library, tmp_path, loads)
    states = at_steps(tmp_path / "all-0.npz")
    for name, shares in {"average": AVERAGE, "ema": EMA, "window": WINDOW}.items():
        same(weights(tmp_path / f"{name}.npz"), mean(states, shares))
