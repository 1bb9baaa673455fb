"""WSM: an average of the last checkpoints of a run replaces the decay of its learning rate."""

from __future__ import annotations

from typing import Any

from claims.claim import Claim, Finding, Numbers, Row, Run, curve, mean, merged
from claims.language import bits, pretrained

from paddle_merge.recipe.decay import average_weights

DECAYS = ("linear", "cosine", "1-sqrt")  # the average of a linear decay is the plain mean
COUNTS = (3, 5, 8, 11, 16, 21)  # how many checkpoints are averaged


def measured(run: Run) -> dict[str, float]:
    """Return bits per character on held-out prose of the last checkpoint, of averages, and of the run with a decay."""
    checkpoints, decayed = pretrained(run)
    found = {"last": bits(run, checkpoints[-1], "prose"), "decayed": bits(run, decayed, "prose")}
    for count in COUNTS:
        for decay in DECAYS:
            flags = {"merge_method": "linear", "weight_list": list(average_weights(decay, count))}
            average = merged(run.folder / "average", checkpoints[-count:], **flags)
            found[f"{decay} {count}"] = bits(run, average, "prose")
    return found


def findings(numbers: Numbers) -> list[Finding]:
    """Compare with the paper."""
    at = {key: mean(values) for key, values in numbers.items()}
    best = min(COUNTS, key=lambda count: at[f"linear {count}"])
    gains = [last - one for last, one in zip(numbers["last"], numbers[f"linear {best}"], strict=True)]
    behind = at[f"linear {best}"] - at["decayed"]
    curves = [at[f"{decay} {best}"] for decay in DECAYS]
    windows = [at[f"linear {count}"] for count in COUNTS]
    return [
        Finding(
            "An average of the last checkpoints is better than the last one.",
            f"the mean of {best} has {mean(gains):.3f} bits less, {min(gains):.3f} on the worst seed (at least 0.05)",
            min(gains) >= 0.05,
        ),
        Finding(
            "It is better than a run whose learning rate decays.",
            f"it has {behind:+.3f} bits against that run (less than 0 is asked for)",
            behind < 0,
        ),
        Finding(
            "How long the window is matters more than the curve.",
            f"windows differ by {max(windows) - min(windows):.3f} bits, curves at the best window by"
            f" {max(curves) - min(curves):.3f}",
            max(windows) - min(windows) > max(curves) - min(curves),
        ),
    ]


def draw(figure: Any, numbers: Numbers) -> None:
    """Draw the loss against the number of checkpoints."""
    axes = figure.subplots()
    for decay, colour in zip(DECAYS, ("tab:blue", "tab:orange", "tab:green"), strict=True):
        curve(axes, COUNTS, numbers, [f"{decay} {count}" for count in COUNTS], f"average, {decay} decay", colour)
    axes.axhline(mean(numbers["last"]), color="tab:red", label="the last checkpoint")
    axes.axhline(mean(numbers["decayed"]), color="black", linestyle="--", label="a run whose rate decays (WSD)")
    axes.set(xlabel="checkpoints that are averaged", ylabel="bits per character of held-out prose")
    axes.legend()


CLAIM = Claim(
    title="WSM",
    paper="Tian et al. 2025, WSM: Decay-Free Learning Rate Schedule via Checkpoint Merging (arXiv 2507.17634)",
    says=(
        "An average of the checkpoints of a run with a constant learning rate replaces the decay, and is better than it"
        " (+3.5 points on MATH, +2.9 on HumanEval, +5.5 on MMLU-Pro); the window matters most."
    ),
    did=(
        "A language model of prose. The run with a decay sees the same sequences in the same order, and its rate falls to 0"
        " over the last fifth of the steps; in these the run without one leaves 11 checkpoints."
    ),
    rows={
        "last": Row("last checkpoint, bits", "worst", 3),
        **{
            f"{decay} {count}": Row(f"average of {count}, {decay}, bits", "best" if count == 11 else "", 3)
            for count in (5, 11, 21)
            for decay in DECAYS
        },
        "decayed": Row("run with a decay (WSD), bits", "between", 3),
    },
    measured=measured,
    findings=findings,
    draw=draw,
)
