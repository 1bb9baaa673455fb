"""Derive findings for the choice of a method: sentences that say what was measured and what it usually means."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import mean
from typing import Any

from ..tables import percent
from .findings import Row, finding, span

UNRELATED, RELATED = 0.1, 0.3  # largest and mean cosine of all pairs
SPARSE = 0.1  # overlap of a pair; below it, the models changed different elements
FEW = 0.35  # share of elements that a model changed; after reinforcement learning it is 5 to 30 % (arXiv 2505.11711)
SMALL = 0.002  # magnitude of changes up to which DARE's authors report it to work


def together(report: Row, pairs: Sequence[Row], everyone: bool) -> Iterator[dict[str, Any]]:
    """Yield findings about the directions of the task vectors, and whether their signs conflict.

    pairs: of models that belong together. everyone: whether these are all models.
    """
    cosines = [pair["cosine"] for pair in pairs]
    cosine_range = span(cosines, "{:.2f}")
    linear = _method(report, "linear")
    norms = [row["norm"] for row in report["models"] if row["norm"]]
    if max(map(abs, cosines)) < UNRELATED:
        shorter = ""
        if everyone and report["average_norm"]:
            share = report["average_norm"] / mean(norms)
            shorter = f"; their average is only {share:.2f} times as long as they are, which --scale can compensate"
        yield finding(
            "unrelated",
            [],
            f"The cosines are near 0 ({cosine_range}), as for models fine-tuned on different tasks, so the sum of the task"
            f" vectors (linear with --no_normalize) keeps nearly all of each{shorter}.",
            False,
        )
    elif mean(cosines) >= RELATED:
        yield finding(
            "related",
            [],
            f"The task vectors have similar directions (cosines {cosine_range}), so an average (linear, or slerp of two)"
            " loses little. Their sum (--no_normalize) is longer than any of them.",
            False,
        )
    else:
        yield finding("cosines", [], f"The cosines of the task vectors are {cosine_range}.", False)
    changed = [row["changed_fraction"] for row in report["models"]]
    if max(map(abs, cosines)) < UNRELATED and None not in changed and max(changed) <= FEW:
        yield finding(
            "few_changed",
            [],
            f"The models changed few elements ({_changed(report)}), in nearly orthogonal directions, as after reinforcement"
            " learning with verifiable rewards. If they were trained so, electing signs (ties, dare_ties, della) loses much"
            " of what they do (arXiv 2606.18521); ram, which takes what one model alone changed as it is, suits them.",
            False,
        )
    overlaps = [pair["overlap"] for pair in pairs]
    if None not in overlaps and max(overlaps) < SPARSE:
        yield finding(
            "sparse",
            [],
            f"The models changed different elements (the largest overlap of a pair is {percent(max(overlaps))}), so sign"
            " election has little effect.",
            False,
        )
        return
    conflicts = [pair["sign_conflict"] for pair in pairs if pair["sign_conflict"] is not None]
    if conflicts:
        instead = ""
        if everyone and linear and linear["cancelled"]:
            instead = (
                f" When linear adds the changes, {percent(linear['cancelled'])} of their mass cancels; ties, dare_ties and"
                " della elect a sign instead."
            )
        yield finding(
            "signs",
            [],
            f"Of the elements that both models of a pair changed, {span(conflicts, '{:.0%}')} have different signs; for"
            f" unrelated changes, 50% do.{instead}",
            False,
        )


def methods(report: Row, density: float) -> Iterator[dict[str, Any]]:
    """Yield findings about what trimming, sign election and DARE would do. density: --reserve_p."""
    at = f"At --reserve_p {density:g}"
    if ties := _method(report, "ties"):
        trimmed, elected, total = (
            ties[name]["mass"] for name in ("dropped_by_sparsifier", "dropped_by_election", "dropped")
        )
        if ties["dropped_by_sparsifier"]["elements"] == 0 and density < 1:
            yield finding(
                "nothing_trimmed",
                [],
                f"{at}, trim drops nothing, because it keeps more elements than changed ({_changed(report)}).",
                False,
            )
        if None not in (trimmed, elected, total):
            yield finding(
                "ties_drops",
                [],
                f"{at}, ties drops {percent(total)} of the mass of the changes (the sum of magnitudes): {percent(trimmed)}"
                f" by trimming, {percent(elected)} by sign election.",
                False,
            )
    if dare := _method(report, "dare_linear"):
        means = [row["mean"] for row in report["models"] if row["mean"]]
        if dare["sparsified_distance"] and means:
            noise = dare["sparsified_distance"]
            size = f"{min(means):.2g}" if min(means) == max(means) else f"{min(means):.2g} to {max(means):.2g}"
            verdict = "above" if max(means) > SMALL else "below"
            yield finding(
                "dare_noise",
                [],
                f"{at}, dare adds noise to each task vector of {noise:.2g} times its length. DARE's authors report that it"
                f" works for changes up to about {SMALL:g}; here their mean magnitude is {size}, which is {verdict} that.",
                False,
            )


def _changed(report: Row) -> str:
    return span([row["changed_fraction"] for row in report["models"] if row["changed_fraction"] is not None], "{:.1%}")


def _method(report: Row, name: str) -> Row | None:
    return next((row for row in report["methods"] if row["method"] == name), None)
