"""Replicate what papers on searching for merges report, on small networks, with several seeds.

    python tools/replications.py                      # three seeds: minutes on two cores
    python tools/replications.py --only tax --seeds 5

tax     The alignment tax (Lin et al. 2024): a network that reads digits upright is fine-tuned on changed ones (turned,
        inverted, mirrored), which it then reads better, and upright ones worse. Points between the two networks are scored:
        how much of the gain do they keep, how much of the loss do they avoid? Points are chosen on other digits than those
        that the numbers are measured on. The hypervolume of interpolation must be at least 0.80 of the box on average.

The networks and digits are those of compare_methods.py.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

sys.path.insert(0, str(Path(__file__).resolve().parent))
from compare_methods import Reader, Task, accuracies, inverted, trained

from paddle_merge.search.asked import Asked
from paddle_merge.search.contract import Candidate, Scores
from paddle_merge.search.sweep import sweep
from paddle_merge.search.sweep_output import SweepOutcome

TASKS = [
    Task("upright"),
    Task("turned", lambda images: np.rot90(images, axes=(1, 2))),
    Task("inverted", inverted),
    Task("mirrored", lambda images: images[:, :, ::-1]),
]
# method -> number of steps from 0 to 1; of each, hma has all points of a lattice over the shares of three groups of layers.
METHODS = {"linear": 20, "hma": 10, "slerp": 20, "lines": 20}
LEAST = 0.80  # of the box, which interpolation's hypervolume must have


class Digits:
    """An evaluator: the accuracy on a changed task, the reward, and on upright digits, the capability, in per cent."""

    metrics = ("reward", "upright")

    def __init__(self, model: Reader, task: Task, splits: dict[str, tuple[Any, Any]]):
        self._model, self._tasks, self._splits = model, [task, TASKS[0]], splits

    def count(self, split: str) -> int | None:
        """Return None: all digits of a split are scored."""
        return None

    def __call__(self, candidate: Candidate, split: str, seed: int, samples: Sequence[int] | None) -> Scores:
        candidate.load_into(self._model)
        reward, upright = accuracies(self._model, self._tasks, *self._splits[split])
        return Scores({"reward": 100 * reward, "upright": 100 * upright})


def swept(folder: Path, number: int, method: str, evaluator: Digits, out: Path) -> SweepOutcome:
    """Return the sweep between the base and an expert by one method."""
    section = {
        "pre": str(folder / "base"),
        "aligned": str(folder / f"expert{number}"),
        "method": method,
        "toward_aligned": [a / METHODS[method] for a in range(METHODS[method] + 1)],
        "evaluate": {"python": "replications:Digits"},
        "objectives": {"reward": "maximize", "upright": "maximize"},
        "data": {"search": "other digits", "report": "test digits"},
    }
    file = out.with_suffix(".yaml")
    file.write_text(json.dumps({"sweep": section}))
    return sweep(Asked(str(file), str(out), evaluator=evaluator, memory=1 << 30), progress=False)


def measured(outcome: SweepOutcome) -> dict[str, Any]:
    """Return what the test digits say about a sweep: hypervolume, and of the picked point a, kept and bought back."""
    tax = outcome.reported_tax()
    assert tax is not None
    assert outcome.picked is not None
    metrics = outcome.reported[outcome.picked.title].metrics
    return {
        "hypervolume": outcome.reported_hypervolume(),
        "toward_aligned": outcome.picked.values[1],
        "kept": tax.kept(metrics),
        "bought_back": tax.bought_back("upright", metrics),
        "gain": tax.aligned["reward"] - tax.pre["reward"],
        "tax": tax.pre["upright"] - tax.aligned["upright"],
    }


def alignment_tax(seeds: int) -> tuple[Any, bool]:
    """Replicate the alignment tax; return all numbers, and whether interpolation reaches LEAST."""
    found: dict[str, list[list[dict[str, Any]]]] = {method: [] for method in METHODS}
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as work:
            folder = Path(work)
            model, (held, test) = trained(folder, TASKS, seed)
            for rows in found.values():
                rows.append([])
            for number, task in enumerate(TASKS[1:]):
                evaluator = Digits(model, task, {"search": held, "report": test})
                for method in METHODS:
                    outcome = swept(folder, number, method, evaluator, folder / f"{method}{number}")
                    found[method][-1].append({"task": task.name, **measured(outcome)})
    first = [run for runs in found["linear"] for run in runs]
    gain, tax = (float(np.mean([run[name] for run in first])) for name in ("gain", "tax"))
    print("## Alignment tax\n")
    print(f"{len(first)} runs ({seeds} seeds x {', '.join(task.name for task in TASKS[1:])}): fine-tuning gains {gain:.1f}")
    print(f"points on its own task, and costs {tax:.1f} on upright digits. Measured on the test digits:\n")
    print(
        "| method | hypervolume, by seed | mean | picked a | kept | bought back |\n| --- | --- | ---: | ---: | ---: | ---: |"
    )
    means = {}
    for method, seeds_of in found.items():
        volumes = [float(np.mean([run["hypervolume"] for run in runs])) for runs in seeds_of]
        means[method] = float(np.mean(volumes))
        every = [run for runs in seeds_of for run in runs]
        a, kept, back = (float(np.mean([run[name] for run in every])) for name in ("toward_aligned", "kept", "bought_back"))
        shown = " ".join(f"{volume:.3f}" for volume in volumes)
        print(f"| {method} | {shown} | {means[method]:.3f} | {a:.2f} | {100 * kept:.0f}% | {100 * back:.0f}% |")
    reached = means["linear"] >= LEAST
    print(f"\nInterpolation (linear) has {means['linear']:.3f} of the box; at least {LEAST:.2f} is expected: {reached}.")
    print(f"HMA has {means['hma'] - means['linear']:+.3f} against it.")
    return found, reached


PARTS: dict[str, Callable[[int], tuple[Any, bool]]] = {"tax": alignment_tax}


def main(
    seeds: Annotated[int, typer.Option(min=1, help="Number of trainings, each with its own seed.")] = 3,
    only: Annotated[str, typer.Option(help=f"Run one part only: {', '.join(PARTS)}.")] = "",
    save: Annotated[Path | None, typer.Option(help="JSON file to write all numbers to.")] = None,
) -> None:
    """Run the replications, and print what came out; exit with 1 if one doesn't reach what it must."""
    logging.getLogger("paddle_merge").setLevel(logging.ERROR)
    numbers, reached = {}, True
    for name in [only] if only else PARTS:
        began = time.perf_counter()
        numbers[name], good = PARTS[name](seeds)
        reached = reached and good
        print(f"\n({name}: {time.perf_counter() - began:.0f} s)", flush=True)
    if save:
        save.write_text(json.dumps(numbers))
    raise typer.Exit(0 if reached else 1)


if __name__ == "__main__":
    typer.run(main)
