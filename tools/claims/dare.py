"""DARE: most of a task vector can be dropped at random, if what is left is scaled up."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from claims.claim import Claim, Finding, Numbers, Row, Run, curve, mean, merged
from claims.digits import experts
from claims.language import bits, coder

RATES = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99)  # shares of the task vector that are dropped
HOW: dict[str, dict[str, Any]] = {  # how: flags
    "rescaled": {"merge_method": "dare_linear"},
    "not rescaled": {"merge_method": "dare_linear", "rescale": False},
    "smallest": {"merge_method": "ties", "rescale": False},  # with one model, TIES only trims
}


def sparse(base: Path, expert: Path, rate: float, how: str, out: Path, seed: int) -> Path:
    """Write the base plus what is left of the task vector of an expert."""
    drawn = {"seed": seed} if HOW[how]["merge_method"].startswith("dare") else {}
    return merged(out, [expert], base, reserve_p=round(1 - rate, 2), **HOW[how], **drawn)


def of_digits(run: Run) -> dict[str, float]:
    """Return the mean accuracy of the experts on their own tasks, in per cent."""
    mine = experts(run, "changed")
    found = {
        "none": mean([mine.accuracies(expert)[task] for task, expert in enumerate(mine.all, 1)]),
        "all": mean(mine.accuracies(mine.base)[1:]),
    }
    for rate, how in itertools.product(RATES, HOW):
        left = [sparse(mine.base, expert, rate, how, Path(f"{expert}-sparse"), run.seed) for expert in mine.all]
        found[f"{how} {rate}"] = mean([mine.accuracies(one)[task] for task, one in enumerate(left, 1)])
    return found


def of_language(run: Run) -> dict[str, float]:
    """Return bits per character of code."""
    base, tuned = coder(run)
    found = {"lm none": bits(run, tuned, "code"), "lm all": bits(run, base, "code")}
    for rate, how in itertools.product(RATES, HOW):
        left = sparse(base, tuned, rate, how, run.folder / "sparse", run.seed)
        found[f"lm {how} {rate}"] = bits(run, left, "code")
    return found


def measured(run: Run) -> dict[str, float]:
    """Return the numbers of both."""
    return of_digits(run) | of_language(run)


def findings(numbers: Numbers) -> list[Finding]:
    """Compare with the paper."""
    at = {key: mean(values) for key, values in numbers.items()}
    lost, bare = at["none"] - at["rescaled 0.9"], at["none"] - at["not rescaled 0.9"]
    far, small = at["none"] - at["rescaled 0.99"], at["none"] - at["smallest 0.9"]
    gain = at["lm all"] - at["lm none"]
    kept = {key: (at["lm all"] - at[f"lm {key}"]) / gain for key in ("rescaled 0.9", "not rescaled 0.9", "rescaled 0.99")}
    return [
        Finding(
            "90% of a task vector can be dropped without loss.",
            f"digits: {lost:.1f} points are lost (at most 1.5)",
            lost <= 1.5,
        ),
        Finding(
            "Without rescaling that costs much of what was learned.",
            f"digits: {bare:.1f} points are lost (at least 5 more than with it)",
            bare >= lost + 5,
        ),
        Finding(
            "Keeping the largest instead of random elements is worse at high rates.",
            f"digits, at 90%: {small:.1f} points are lost by it, {lost:.1f} by DARE",
            small > lost + 1,
        ),
        Finding("Large models stand even a rate of 99%.", f"digits: {far:.1f} points are lost (at most 1.5)", far <= 1.5),
        Finding(
            "The same holds for language models: 90% can be dropped without loss.",
            f"of what fine-tuning gains on code, {kept['rescaled 0.9']:.0%} is left with rescaling (at least 95% is asked"
            f" for), {kept['not rescaled 0.9']:.0%} without; at 99%, {kept['rescaled 0.99']:.0%}",
            kept["rescaled 0.9"] >= 0.95,
        ),
    ]


def draw(figure: Any, numbers: Numbers) -> None:
    """Draw accuracies and losses against the drop rate."""
    colours = {"rescaled": "tab:blue", "not rescaled": "tab:red", "smallest": "tab:green"}
    words = {"rescaled": "random, rescaled (DARE)", "not rescaled": "random, not rescaled", "smallest": "the smallest"}
    places = range(len(RATES))
    for axes, first in zip(figure.subplots(1, 2), ("", "lm "), strict=True):
        for how, colour in colours.items():
            curve(axes, places, numbers, [f"{first}{how} {rate}" for rate in RATES], words[how], colour)
        axes.axhline(mean(numbers[f"{first}none"]), color="black", linewidth=0.8, label="nothing is dropped")
        axes.axhline(mean(numbers[f"{first}all"]), color="grey", linestyle=":", label="all is dropped: the base")
        axes.set_xticks(places, [f"{rate:.0%}" for rate in RATES])
        axes.set(xlabel="drop rate", ylabel="bits per character of code" if first else "accuracy on the expert's task, %")
        axes.set_title("Language models" if first else "Networks that read digits")
    axes.set_ylim(top=1.5 * mean(numbers["lm all"]) - 0.5 * mean(numbers["lm none"]))  # beyond, nothing is left to compare
    axes.legend()


SHOWN = (0.5, 0.9, 0.95, 0.99)
REPORTED = {("rescaled", 0.9): "no loss", ("not rescaled", 0.9): "loss", ("rescaled", 0.99): "no loss, large models"}
CLAIM = Claim(
    title="DARE",
    paper="Yu et al. 2024, Language Models are Super Mario (arXiv 2311.03099)",
    says="Of the task vectors of supervised fine-tuning, 90% or even 99% can be dropped at random, if the rest is rescaled.",
    did=(
        "The experts of negation, on their own tasks: the base plus what is left of the task vector; and a language model of"
        " prose that is fine-tuned on code."
    ),
    rows={
        "none": Row("digits, nothing dropped, %"),
        "all": Row("digits, all dropped (the base), %"),
        **{
            f"{how} {rate}": Row(f"digits, {rate:.0%} dropped, {how}, %", REPORTED.get((how, rate), ""))
            for rate in SHOWN
            for how in ("rescaled", "not rescaled")
        },
        "smallest 0.9": Row("digits, the smallest 90% dropped, %", "loss"),
        "lm none": Row("language model, nothing dropped, bits", "", 3),
        "lm all": Row("language model, all dropped, bits", "", 3),
        **{
            f"lm {how} {rate}": Row(f"language model, {rate:.0%} dropped, {how}, bits", "", 3)
            for rate in SHOWN
            for how in ("rescaled", "not rescaled")
        },
    },
    measured=measured,
    findings=findings,
    draw=draw,
)
