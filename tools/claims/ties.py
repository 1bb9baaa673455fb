"""TIES: trimming and electing signs merges experts better than averaging does."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from claims.claim import Claim, Finding, Numbers, Row, Run, mean, merged
from claims.digits import Experts, experts

# What the tuned ones are chosen from: the scale of the sum of task vectors; density and scale of TIES.
SCALES = (0.1, 0.15, 0.2, 0.3, 0.4, 0.6)
DENSITIES, LAMBDAS = (0.2, 0.5), (0.3, 0.6, 1.0)
NAMES = {"places": "other places", "changed": "same place"}


def merge_all(mine: Experts, **flags: Any) -> Path:
    """Merge all experts."""
    return merged(mine.folder / "merged", mine.all, mine.base, **flags)


def ties(density: float, scale: float) -> dict[str, Any]:
    """Return the flags of TIES as the paper has it: without rescaling what is left after trimming."""
    return {"merge_method": "ties", "reserve_p": density, "rescale": False, "scale": scale}


def summed(scale: float, count: int) -> dict[str, Any]:
    """Return the flags of task arithmetic, with a number of experts."""
    return {"merge_method": "linear", "weight_list": [scale] * count, "normalize": False}


def measured(run: Run) -> dict[str, float]:
    """Return the mean accuracy on all tasks, the base's included, in per cent."""
    found = {}
    for name in NAMES:
        mine = experts(run, name)

        def score(flags: dict[str, Any], split: str = "test", mine: Experts = mine) -> float:
            return mean(mine.accuracies(merge_all(mine, **flags), split))

        tuned = {
            "tuned sum": [summed(scale, len(mine.all)) for scale in SCALES],
            "tuned ties": [ties(density, scale) for density, scale in itertools.product(DENSITIES, LAMBDAS)],
        }
        found[f"{name} base"] = mean(mine.accuracies(mine.base))
        found[f"{name} average"] = score({"merge_method": "linear"})
        found[f"{name} ties"] = score(ties(0.5, 1.0))
        for key, choices in tuned.items():
            found[f"{name} {key}"] = score(max(choices, key=lambda flags: score(flags, "held")))
        own = [mine.accuracies(expert)[task] for task, expert in enumerate(mine.all, 1)]
        found[f"{name} experts"] = mean([mine.accuracies(mine.base)[0], *own])
    return found


def findings(numbers: Numbers) -> list[Finding]:
    """Compare with the paper."""
    pairs = zip(numbers["places ties"], numbers["places average"], strict=True)
    ahead = [one - other for one, other in pairs]
    at = {key: mean(values) for key, values in numbers.items()}
    tuned = at["places tuned ties"] - at["places tuned sum"]
    dense = at["changed ties"] - at["changed average"]
    dense_tuned = at["changed tuned ties"] - at["changed tuned sum"]
    return [
        Finding(
            "TIES without tuning beats averaging, where experts change different weights.",
            f"by {mean(ahead):+.1f} points, {min(ahead):+.1f} on the worst seed (at least 1.5 on each is asked for)",
            min(ahead) >= 1.5,
        ),
        Finding("Tuned TIES beats tuned task arithmetic, there.", f"by {tuned:+.1f} points (at least 0.5)", tuned >= 0.5),
        Finding(
            "TIES without tuning beats averaging, where experts change the same weights.",
            f"by {dense:+.1f} points (at least 0.5)",
            dense >= 0.5,
        ),
        Finding(
            "Tuned TIES beats tuned task arithmetic, there.",
            f"by {dense_tuned:+.1f} points (at least 0.5)",
            dense_tuned >= 0.5,
        ),
    ]


BARS = {"average": "averaging", "tuned sum": "task arithmetic, tuned", "ties": "TIES", "tuned ties": "TIES, tuned"}


def draw(figure: Any, numbers: Numbers) -> None:
    """Draw a bar for each method, and a dot for each seed."""
    for axes, name in zip(figure.subplots(1, 2, sharey=True), NAMES, strict=True):
        for place, (key, word) in enumerate(BARS.items()):
            values = numbers[f"{name} {key}"]
            axes.bar(place, mean(values), color="tab:blue" if "ties" in key else "tab:gray", label=word)
            axes.plot([place] * len(values), values, "k.", markersize=5)
        axes.axhline(mean(numbers[f"{name} base"]), color="grey", linestyle=":")
        axes.text(len(BARS) - 0.55, mean(numbers[f"{name} base"]) + 0.3, "base", ha="right", color="grey")
        axes.set_xticks(range(len(BARS)), [word.replace(", ", ",\n") for word in BARS.values()], fontsize=8)
        axes.set_title("Digits at other places" if name == "places" else "Turned, inverted, mirrored digits")
    lowest = min(min(numbers[f"{name} {key}"]) for name in NAMES for key in (*BARS, "base"))
    axes.set_ylim(max(0.0, lowest - 4), 100)
    figure.axes[0].set_ylabel("accuracy, mean of all tasks, %")


CLAIM = Claim(
    title="TIES",
    paper="Yadav et al. 2023, TIES-Merging (arXiv 2306.01708), table 1: CLIP ViT-B/32, eight tasks",
    says="Trimming small changes and electing signs merges experts better than averages and sums of task vectors do.",
    did=(
        "The base reads digits in the middle of a page, and eight experts each in another place, so that they change partly"
        " different weights; and the three experts of negation, which change the same weights. All tasks count, the base's"
        " included. TIES keeps the largest half of each task vector. Scales and densities are tuned on held-out digits."
    ),
    rows={
        f"{name} {key}": Row(f"{words}, {NAMES[name]}, %", reported)
        for name in NAMES
        for key, words, reported in (
            ("base", "base", ""),
            ("experts", "each task by its own expert", "90.5"),
            ("average", "averaging", "65.8"),
            ("tuned sum", "task arithmetic, tuned", "70.1"),
            ("ties", "TIES", "72.4"),
            ("tuned ties", "TIES, tuned", "73.6"),
        )
    },
    measured=measured,
    findings=findings,
    draw=draw,
)
