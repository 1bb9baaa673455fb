"""Sum up what a search found: the table of inputs, uniform merges and the result; comparisons; failures."""

from __future__ import annotations

import math
import os
import shlex
from collections import Counter
from collections.abc import Sequence

import numpy as np

from ..job import Result
from ..objectives import losses
from ..outcome import Outcome, Scored, standard_error

BEST = "best.yaml"
NOISE = 2.0  # standard errors, within which a difference may be chance
MOST_DECIMALS = 6
PROGRAM = "python -m paddle_merge"


def shown(outcome: Outcome) -> list[tuple[str, Scored]]:
    """Return what the table compares, with a title for each: inputs, uniform merges, and the result last."""
    return [*((one.title, one) for one in outcome.baselines), (f"the result ({outcome.best.title})", outcome.best)]


def splits(outcome: Outcome) -> list[str]:
    """Return the splits that there are scores of."""
    return ["search", *(["report"] if outcome.reported else [])]


def result_of(outcome: Outcome, one: Scored, split: str) -> Result | None:
    """Return what a model scored on a split; None if it wasn't scored there."""
    return one.result if split == "search" else outcome.reported.get(one.title)


def table(outcome: Outcome, metrics: Sequence[str], split: str) -> list[list[str]]:
    """Return the rows of the table of a split as text, the headings first: each metric with its standard error, and what an
    evaluation takes."""
    known = [(title, result_of(outcome, one, split)) for title, one in shown(outcome)]
    costs = list(dict.fromkeys(name for _, result in known if result is not None for name in result.cost))
    rows = [["", *metrics, "seconds", *costs]]
    for title, result in known:
        spent = ["-"] * (1 + len(costs))
        if result is not None:
            spent = [
                f"{result.seconds:.3g}",
                *(f"{result.cost[name]:.6g}" if name in result.cost else "-" for name in costs),
            ]
        rows.append([title, *(cell(result, name) for name in metrics), *spent])
    return rows


def cell(result: Result | None, metric: str) -> str:
    """Return a score as text: "0.8712 ± 0.0081"; "failed" if there is none, "-" if nothing was scored."""
    if result is None:
        return "-"
    if result.error:
        return "failed"
    if metric not in result.metrics:
        return "-"
    error = standard_error(result, metric)
    value = result.metrics[metric]
    if not error:
        return f"{value:.4g}"
    decimals = 1 - math.floor(math.log10(error))  # two digits of the error
    plain = 0 <= decimals <= MOST_DECIMALS
    return f"{value:.{decimals}f} ± {error:.{decimals}f}" if plain else f"{value:.4g} ± {error:.2g}"


def has_errors(rows: Sequence[Sequence[str]]) -> bool:
    """Return whether a table has standard errors."""
    return any("±" in text for row in rows for text in row)


def compared(outcome: Outcome) -> list[str]:
    """Return a sentence on each objective: by how much the result beats the best of the others on the search split, and
    whether that may be chance.

    The others are the inputs and the merges that it is compared with; of several objectives the merges only, since an input
    may be the best in one at the expense of another.
    """
    objectives = outcome.spec.objectives
    others = [one for one in outcome.baselines if not one.known.error and (one.values or len(objectives) == 1)]
    split = splits(outcome)[-1]
    found = []
    for metric, direction in objectives.items() if others else ():
        best = min(others, key=lambda one: losses([one.known], {metric: direction})[0])
        ours, theirs = (result_of(outcome, one, split) for one in (outcome.best, best))
        if ours is None or theirs is None or ours.error or theirs.error:
            continue
        gain = (ours.metrics[metric] - theirs.metrics[metric]) * (1 if direction == "maximize" else -1)
        error = _of_difference(ours, theirs, metric)
        word = "better" if gain > 0 else "worse" if gain < 0 else "different"
        amount = f"{abs(gain):.3g} {word}" if gain else "no better"
        noise = f" (standard error of the difference: {error:.2g})" if error is not None else ""
        chance = error is not None and abs(gain) < NOISE * error
        doubt = ", which may be chance" if chance and gain else ""
        found.append(f"On the {split} split the result's {metric} is {amount} than that of {best.title}{noise}{doubt}.")
    if found and split == "search":
        found.append(
            "These are the samples that the result was chosen by, so it may do worse on others; data: {report: ...} in the"
            " file makes a comparison that is fair."
        )
    return found


def _of_difference(ours: Result, theirs: Result, metric: str) -> float | None:
    """Return the standard error of the difference of two means over the same samples; None if they aren't known."""
    a, b = (np.asarray(one.samples.get(metric, ()), np.float64) for one in (ours, theirs))
    if len(a) != len(b) or len(a) < 2:
        return None
    return float((a - b).std(ddof=1) / np.sqrt(len(a)))


def failures(outcome: Outcome) -> list[tuple[str, int, str]]:
    """Return (reason, how many candidates failed with it, the first of them), the most frequent reason first."""
    first: dict[str, str] = {}
    for one in outcome.candidates:
        if one.known.error:
            first.setdefault(one.known.error, one.title)
    counts = Counter(one.known.error for one in outcome.candidates if one.known.error)
    return [(reason, count, first[reason]) for reason, count in counts.most_common()]


def done(outcome: Outcome) -> str:
    """Return what the search did, both parts of one in two: "297 candidates by cma in 12.3 s, 5 of which failed"."""
    before = f"{done(outcome.first)}, then " if outcome.first is not None else ""
    failed = sum(bool(one.known.error) for one in outcome.candidates)
    text = f"{before}{len(outcome.candidates)} candidates by {outcome.optimizer} in {outcome.seconds:.1f} s"
    return text + (f", {failed} of which failed" if failed else "")


def repeat(folder: str) -> str:
    """Return the command that makes the merge of a search's result again. folder: of the search."""
    return f"{PROGRAM} merge {shlex.quote(os.path.join(folder, BEST))} --output_path ./again"
