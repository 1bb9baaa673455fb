"""Train small transformers, and measure what searches over parameters, over layer paths, and over both are worth.

    python tools/replicate_paths.py            # three seeds: minutes on two cores
    python tools/replicate_paths.py --seeds 1

A language model of four layers (tiny_llama.py) learns a little of three tasks: to copy a row of digits, to write it
backwards, and to shift it by two places. Two experts are that model, fine-tuned on one of the last two. One model is to do
both. Three searches are compared with the inputs and the tuned uniform merge: PS, a weight for each layer of both experts
(CMA-ES); DFS, a path through the layers of both, each kept or dropped, with factors on the stream between (CatCMA); and
PS+DFS, a path through the merge that PS found and an expert (Akiba et al. 2025). Searches maximise the share of the answers'
digits that are right; the table shows it on other rows than those that were searched on. Nothing is chosen by these.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import paddle
import paddle.nn.functional as F  # noqa: N812
import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))
from tiny_llama import Weights, load, logits, new, save

from paddle_merge.search.asked import Asked
from paddle_merge.search.contract import Candidate, Scores
from paddle_merge.search.evolve import evolve
from paddle_merge.search.outcome import Outcome

WIDTH, HEADS, DEPTH, INNER = 32, 2, 4, 96
DIGITS, COPY, BACKWARDS, SHIFTED, SEPARATOR, WORDS = 10, 10, 11, 12, 13, 14  # tokens: the digits, then these
ROW = 5  # digits of a row; a sequence is the task, the row, a separator, and the answer
SAMPLES = 256  # rows of each split, half of them of each task
RATE = {"base": 4e-3, "expert": 2e-3}
STEPS = {"base": 300, "expert": 250}
EVALUATIONS = {"PS": 140, "DFS": 240, "then": 120}


def sequences(rows: Any, task: int) -> Any:
    """Return tokens [n, 2 ROW + 2] of rows of digits [n, ROW]."""
    answers = {COPY: rows, BACKWARDS: rows[:, ::-1], SHIFTED: np.roll(rows, 2, 1)}[task]
    of_task, separator = np.full((len(rows), 1), task), np.full((len(rows), 1), SEPARATOR)
    return np.concatenate([of_task, rows, separator, answers], axis=1)


def answers_of(weights: Weights, tokens: Any) -> tuple[Any, Any]:
    """Return logits [n, ROW, words] and the right digits [n, ROW] of the answers of sequences."""
    given = paddle.to_tensor(tokens)
    return logits(weights, given[:, :-1], HEADS)[:, -ROW:], given[:, -ROW:]


def train(weights: dict[str, Any], shares: Mapping[int, float], steps: int, rate: float, generator: Any) -> None:
    """Train by AdamW on random rows, 32 in a step, of which each task has a share; the rate falls to 0."""
    schedule = paddle.optimizer.lr.CosineAnnealingDecay(rate, steps)
    optimizer = paddle.optimizer.AdamW(schedule, parameters=list(weights.values()), weight_decay=0.0)
    for _ in range(steps):
        tokens = np.concatenate(
            [sequences(generator.integers(DIGITS, size=(round(32 * share), ROW)), task) for task, share in shares.items()]
        )
        given, right = answers_of(weights, tokens)
        loss = F.cross_entropy(given.reshape([-1, WORDS]), right.reshape([-1]))
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        schedule.step()


def trained(folder: Path, seed: int) -> None:
    """Train the base and the two experts, and write them into a folder."""
    generator = np.random.default_rng(seed)
    base = new(seed, WORDS, WIDTH, DEPTH, INNER)
    train(base, {COPY: 0.5, BACKWARDS: 0.25, SHIFTED: 0.25}, STEPS["base"], RATE["base"], generator)
    save(base, folder / "base", HEADS)
    for name, task in (("backwards", BACKWARDS), ("shifted", SHIFTED)):
        expert = load(folder / "base")
        train(expert, {task: 1.0}, STEPS["expert"], RATE["expert"], generator)
        save(expert, folder / name, HEADS)


class Judge:
    """Scores candidates on both tasks. Metrics: accuracy, and each task's accuracy."""

    metrics: tuple[str, ...] | None = ("accuracy", "backwards", "shifted")

    def __init__(self, seed: int):
        generator = np.random.default_rng([seed, 1])
        rows = {split: generator.integers(DIGITS, size=(2, SAMPLES // 2, ROW)) for split in ("search", "report")}
        self._tokens = {
            split: np.concatenate([sequences(its[0], BACKWARDS), sequences(its[1], SHIFTED)]) for split, its in rows.items()
        }

    def count(self, split: str) -> int:
        return SAMPLES

    def __call__(self, candidate: Candidate, split: str, seed: int, samples: Sequence[int] | None) -> Scores:
        weights = candidate.state_dict("pd")
        with paddle.no_grad():
            given, right = answers_of(weights, self._tokens[split])
            hits = (given.argmax(-1) == right).numpy().mean(1)
        halves = hits.reshape(2, -1).mean(1)
        metrics = {"accuracy": hits.mean(), "backwards": halves[0], "shifted": halves[1]}
        return Scores({name: float(value) for name, value in metrics.items()}, {"accuracy": hits.tolist()})


def merged(folder: Path, weight: Any) -> dict[str, Any]:
    """Return the recipe of a merge of both experts."""
    models = [{"model": str(folder / name), "parameters": {"weight": weight}} for name in ("backwards", "shifted")]
    return {"merge_method": "task_arithmetic", "base_model": str(folder / "base"), "models": models}


def search_file(folder: Path, kind: str, seed: int) -> Path:
    """Write a search file. kind: PS, DFS or PS+DFS."""
    free: Any = {"search": [0, 1.5], "start": 0.5}
    by_layer = [{"filter": "embed", "value": free}, {"filter": "lm_head", "value": free}, {"value": {**free, "by": "layer"}}]
    experts = [str(folder / name) for name in ("backwards", "shifted")]
    search: dict[str, Any] = {
        "evaluate": {"python": "unused:unused"},  # Judge is handed to evolve()
        "objectives": {"accuracy": "maximize"},
        "data": {"search": "the search split", "report": "the report split"},
        "seed": seed,
        "evaluations": EVALUATIONS["DFS" if kind == "DFS" else "PS"],
    }
    documents: list[dict[str, Any]] = [merged(folder, by_layer)] if kind == "PS" else []
    if kind == "DFS":
        documents = [{"paths": {"models": experts, "repeats": 2, "scales": [0.5, 2]}}]
    if kind == "PS+DFS":
        documents = [
            {"name": "both", **merged(folder, by_layer)},
            {"paths": {"models": ["both", experts[0]], "scales": [0.5, 2]}},
        ]
        search["then"] = {"evaluations": EVALUATIONS["then"]}
    path = folder / f"{kind}.yaml"
    path.write_text("\n---\n".join(json.dumps(one) for one in [*documents, {"search": search}]))
    return path


def searched(path: Path, judge: Judge) -> Outcome:
    asked = Asked(str(path), str(path.with_suffix("")), memory=1 << 30, evaluator=judge)
    return evolve(asked, progress=False)


def measured(seed: int) -> dict[str, dict[str, float]]:
    """Train and search with a seed; return title -> the metrics on the report split."""
    logging.getLogger("paddle_merge").setLevel(logging.WARNING)
    paddle.device.set_device("cpu")
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as work:
        folder, judge = Path(work), Judge(seed)
        trained(folder, seed)
        print(f"seed {seed}: trained, {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
        found = {}
        for kind in ("PS", "DFS", "PS+DFS"):
            found[kind] = searched(search_file(folder, kind, seed), judge)
            layers = json.loads((folder / kind / "config.json").read_text())["num_hidden_layers"]
            print(f"seed {seed}: {kind}, {layers} layers, {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
        reported, titles = found["PS"].reported, found["PS"].baselines
        table = {Path(one.path).name if one.path else one.title.partition(" (")[0]: reported[one.title] for one in titles}
        table |= {kind: outcome.reported[outcome.best.title] for kind, outcome in found.items()}
    return {title: dict(result.metrics) for title, result in table.items()}


def main(seeds: Annotated[int, typer.Option(min=1, help="Number of trainings, each with its own seed.")] = 3) -> None:
    """Train, search, and print a table."""
    began = time.perf_counter()
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        tables = list(pool.map(measured, range(seeds)))
    print(f"| digits right, % | {' | '.join(f'seed {seed}' for seed in range(seeds))} | mean | backwards | shifted |")
    print(f"| --- |{' ---: |' * (seeds + 3)}")
    for title in tables[0]:
        rows = [table[title] for table in tables]
        means = [100 * float(np.mean([row[name] for row in rows])) for name in ("accuracy", "backwards", "shifted")]
        cells = [*(f"{100 * row['accuracy']:.1f}" for row in rows), *(f"{one:.1f}" for one in means)]
        print(f"| {title} | {' | '.join(cells)} |")
    print(f"{time.perf_counter() - began:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes, one for each core
    typer.run(main)
