"""The alignment tax: between a model and what it was fine-tuned to, there are points that have most of both."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from claims.claim import Claim, Finding, Numbers, Row, Run, mean
from claims.digits import Experts, experts
from compare_methods import accuracies

from paddle_merge.search.asked import Asked
from paddle_merge.search.contract import Candidate, Scores
from paddle_merge.search.sweep import sweep
from paddle_merge.search.sweep_output import SweepOutcome

# method -> number of steps from 0 to 1; of each, hma has all points of a lattice over the shares of three groups of layers.
METHODS = {"linear": 20, "hma": 10, "slerp": 20, "lines": 20}
LEAST = 0.80  # of the box, which interpolation's hypervolume must have


class Digits:
    """An evaluator: the accuracy on a changed task, the reward, and on upright digits, the capability, in per cent."""

    metrics = ("reward", "upright")

    def __init__(self, mine: Experts, task: int) -> None:
        self._model, self._tasks = mine.model, [mine.tasks[task], mine.tasks[0]]
        self._splits = {"search": mine.splits["held"], "report": mine.splits["test"]}

    def count(self, split: str) -> int | None:
        """Return None: all digits of a split are scored."""
        return None

    def __call__(self, candidate: Candidate, split: str, seed: int, samples: Sequence[int] | None) -> Scores:
        candidate.load_into(self._model)
        reward, upright = accuracies(self._model, self._tasks, *self._splits[split])
        return Scores({"reward": 100 * reward, "upright": 100 * upright})


def swept(mine: Experts, task: int, method: str) -> SweepOutcome:
    """Return the sweep between the base and the expert of a task by one method."""
    out = mine.folder / f"{method}{task}"
    section = {
        "pre": str(mine.base),
        "aligned": str(mine.all[task - 1]),
        "method": method,
        "toward_aligned": [a / METHODS[method] for a in range(METHODS[method] + 1)],
        "evaluate": {"python": "claims.tax:Digits"},
        "objectives": {"reward": "maximize", "upright": "maximize"},
        "data": {"search": "other digits", "report": "test digits"},
    }
    file = Path(f"{out}.yaml")
    file.write_text(json.dumps({"sweep": section}))
    return sweep(Asked(str(file), str(out), evaluator=Digits(mine, task), memory=1 << 30), progress=False)


def of_sweep(outcome: SweepOutcome) -> dict[str, float]:
    """Return what the test digits say about a sweep: hypervolume, and of the picked point a, kept and bought back."""
    tax = outcome.reported_tax()
    assert tax is not None
    assert outcome.picked is not None
    metrics = outcome.reported[outcome.picked.title].metrics
    hypervolume, kept, back = outcome.reported_hypervolume(), tax.kept(metrics), tax.bought_back("upright", metrics)
    assert hypervolume is not None
    assert kept is not None
    assert back is not None
    return {
        "hypervolume": hypervolume,
        "a": outcome.picked.values[1],
        "kept": 100 * kept,
        "bought back": 100 * back,
        "gain": tax.aligned["reward"] - tax.pre["reward"],
        "tax": tax.pre["upright"] - tax.aligned["upright"],
    }


def measured(run: Run) -> dict[str, float]:
    """Return the mean over the experts, for each method."""
    mine = experts(run, "changed")
    found = {}
    for method in METHODS:
        each = [of_sweep(swept(mine, task, method)) for task in range(1, len(mine.tasks))]
        found |= {f"{method} {name}": mean([one[name] for one in each]) for name in each[0]}
    return found


def findings(numbers: Numbers) -> list[Finding]:
    """Compare with the paper."""
    linear, hma = (mean(numbers[f"{method} hypervolume"]) for method in ("linear", "hma"))
    return [
        Finding(
            "Interpolation keeps most of the gain, and avoids most of the loss.",
            f"it has {linear:.3f} of the box between the two (at least {LEAST:.2f} is asked for; a straight line has 0.5)",
            linear >= LEAST,
        ),
        Finding(
            "Heterogeneous averages (HMA) are better.",
            f"{hma - linear:+.3f} of the box (at least 0.01)",
            hma - linear >= 0.01,
        ),
    ]


def draw(figure: Any, numbers: Numbers) -> None:
    """Draw the hypervolume of each method, and a dot for each seed."""
    axes = figure.subplots()
    for place, method in enumerate(METHODS):
        values = numbers[f"{method} hypervolume"]
        axes.bar(place, mean(values), color="tab:blue")
        axes.plot([place] * len(values), values, "k.")
    axes.axhline(0.5, color="grey", linestyle=":", label="a straight line between the two models")
    axes.set_xticks(range(len(METHODS)), list(METHODS))
    axes.set(ylabel="hypervolume, share of the box", ylim=(0, 1))
    axes.legend(loc="lower right")


CLAIM = Claim(
    title="Alignment tax",
    paper="Lin et al. 2024, Mitigating the Alignment Tax of RLHF (arXiv 2309.06256)",
    says="Averages of a model before and after RLHF have the best front of reward and capability; HMA betters it.",
    did=(
        "The experts of negation: fine-tuning gains on the expert's task, the reward, and costs on upright digits. Points"
        " between base and expert are chosen on held-out digits: the picked one is nearest to the best of both."
    ),
    rows={
        "linear gain": Row("fine-tuning, gain of reward, points"),
        "linear tax": Row("fine-tuning, loss of capability, points"),
        **{
            f"{method} {name}": Row(f"{method}, {words}", "", decimals)
            for method in METHODS
            for name, words, decimals in (
                ("hypervolume", "hypervolume", 3),
                ("a", "picked a", 2),
                ("kept", "of the gain is kept, %", 0),
                ("bought back", "of the loss is avoided, %", 0),
            )
        },
    },
    measured=measured,
    findings=findings,
    draw=draw,
)
