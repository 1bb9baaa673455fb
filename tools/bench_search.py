"""Measure the inner loop of a search: how many candidates per second are made, without scoring them.

A candidate's time is that from its values to its merged tensors in memory (the recipe, its plan, the merge). It is divided
by the floor: the time of the same formulas over the same arrays in memory, with a plan that is already made and an output
that is already there. Both are measured in turn, for other values each time, in the processor's time of one thread, which
other programs on the machine don't lengthen.

    python tools/bench_search.py                   # a small network, and Qwen2-0.5B's shapes: 3 GB of inputs in memory
    python tools/bench_search.py --models small --profile
"""

from __future__ import annotations

import cProfile
import pstats
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from paddle_merge.plan.tensor_plan import TensorPlan
from paddle_merge.run.pipeline import merge_tensor
from paddle_merge.run.state_dicts import MemorySource
from paddle_merge.search.merger import Merger
from paddle_merge.search.spaces import space_of
from tools.bench_models import MODELS, make_checkpoints

METHODS = ("task_arithmetic", "dare_ties", "ties")
FILE = """
merge_method: {method}
base_model: {base}
models:
  - model: {a}
    parameters: {{weight: {{search: [0, 1], by: layer}}{density}}}
  - model: {b}
    parameters: {{weight: {{search: [0, 1], by: layer}}{density}}}
"""
DENSITY = ", density: {search: [0.3, 0.9], by: layer}"


class Floor:
    """The merges of one plan over arrays in memory."""

    def __init__(self, merger: Merger, plans: Sequence[TensorPlan]):
        self._work = []
        for plan in plans:
            found = [merger._values(entry, plan.compute) for entry in plan.inputs]
            source = MemorySource([raw for raw, _ in found], [dtype for _, dtype in found])
            self._work.append((plan, source, merger._backends.of(plan), np.zeros(plan.size, plan.dtype.raw)))

    def run(self) -> None:
        for plan, source, backend, out in self._work:
            with backend.at_work():
                for stored, start in merge_tensor(plan, source, backend).merged():
                    block = backend.fetch(stored)()
                    out[start : start + len(block)] = block


def measured(folder: Path, model: str, method: str, repeats: int, profile: bool) -> dict[str, float]:
    """Return medians: seconds of the floor, of a candidate, and of its parts; and of the ratio of both."""
    base, a, b, _ = make_checkpoints(folder, model)
    density = "" if method == "task_arithmetic" else DENSITY
    merger = Merger(memory=1 << 36)
    space = space_of(FILE.format(method=method, base=base, a=a, b=b, density=density), method, merger)
    random = np.random.default_rng(0)

    def drawn() -> Any:
        return tuple(
            gene.value(float(unit)) for gene, unit in zip(space.genes, random.random(len(space.genes)), strict=True)
        )

    merger.merge(space.recipe(drawn()))  # reads the inputs
    floor = Floor(merger, merger.plan(space.recipe(drawn())))
    floor.run()
    times: dict[str, list[float]] = {"floor": [], "candidate": [], "recipe": [], "plan": [], "ratio": []}
    profiler = cProfile.Profile()
    for _ in range(repeats):
        values = drawn()
        marks = [time.thread_time()]
        floor.run()
        marks.append(time.thread_time())
        if profile:
            profiler.enable()
        recipe = space.recipe(values)
        marks.append(time.thread_time())
        merger.merge(recipe)
        profiler.disable()
        marks.append(time.thread_time())
        merger.plan(recipe)
        marks.append(time.thread_time())
        spans = np.diff(marks)
        for name, span in zip(("floor", "recipe", "merge", "plan"), spans, strict=True):
            times.setdefault(name, []).append(span)
        times["candidate"].append(spans[1] + spans[2])
        times["ratio"].append((spans[1] + spans[2]) / spans[0])
    merger.close()
    if profile:
        pstats.Stats(profiler).sort_stats("tottime").print_stats(25)
        pstats.Stats(profiler).sort_stats("cumtime").print_stats(40)
    return {name: statistics.median(its) for name, its in times.items()}


def main(
    models: Annotated[
        str, typer.Option(help=f"Whose shapes to merge, separated by commas: {', '.join(MODELS)}.")
    ] = "small,0.5b",
    methods: Annotated[str, typer.Option(help="Methods to measure, separated by commas.")] = ",".join(METHODS),
    folder: Annotated[str, typer.Option(help="Folder for the checkpoints.")] = "",
    repeats: Annotated[int, typer.Option(help="Number of pairs; 0: 100 of a small network, 5 of others.")] = 0,
    profile: Annotated[bool, typer.Option(help="Also print where the time of candidates goes.")] = False,
) -> None:
    """Measure candidates per second, and the time of a candidate over that of its formulas alone."""
    root = Path(folder or Path(tempfile.gettempdir()) / "paddle_merge_bench")
    print("| model | method | candidates/s | candidate, ms | recipe, ms | plan, ms | floor, ms | ratio |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |", flush=True)
    for model in models.split(","):
        for method in methods.split(","):
            count = repeats or (100 if model == "small" else 5)
            its = measured(root, model, method, count, profile)
            shown = [f"{1000 * its[name]:.1f}" for name in ("candidate", "recipe", "plan", "floor")]
            print(
                f"| {model} | {method} | {1 / its['candidate']:.3g} | {' | '.join(shown)} | {its['ratio']:.2f} |", flush=True
            )


if __name__ == "__main__":
    typer.run(main)
