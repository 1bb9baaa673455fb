"""Derive findings from the measurements: sentences that say what was measured and what it usually means.

The thresholds are round numbers between values that are usual for fine-tuned models and values that aren't.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import mean, median
from typing import Any

from ..tables import count, percent

FAR = 0.5  # ||task vector|| / ||base||: about 0.01 to 0.1 after fine-tuning, about 1.4 for two unrelated models
LONG = 10.0  # ||task vector|| / median of the others
ALONE, TOGETHER = 0.1, 0.3  # mean cosine of a model with the others, and of the others with each other
ALIKE, AGAINST = 0.95, -0.1  # cosine of a pair
UNRELATED, RELATED = 0.1, 0.3  # largest and mean cosine of all pairs
SPARSE = 0.1  # overlap of a pair; below it, the models changed different elements
SMALL = 0.002  # magnitude of changes up to which DARE's authors report it to work
NAMED = 3  # tensors and pairs named in one sentence

Row = Mapping[str, Any]


def advice(report: Row, density: float) -> list[dict[str, Any]]:
    """Return the findings that follow from a report, each with `text`, `warning`, `about` and `code`.

    report: as made by report.py. density: --reserve_p. about: the labels of the models concerned; empty if all are. code:
    the kind of finding, for programs.
    """
    return list(_advice(report, density))


def _advice(report: Row, density: float) -> Iterator[dict[str, Any]]:
    yield from _refused(report)
    rows = report["models"]
    same = [row for row in rows if row["equals_base"]]
    for row in same:
        text = "is identical to the base model, so its task vector is zero. It only weakens an average; remove it."
        yield _said("equals_base", [row], f"{_name(row)} {text}")
    far = [row for row in rows if (row["relative"] or 0.0) >= FAR]
    copies = {pair["b"] for pair in report["pairs"] if pair["identical"]}
    odd = [*same, *far, *(row for row in rows if row["label"] in copies or not row["changed"])]
    distinct = [row for row in rows if row not in odd]
    yield from _elsewhere(report, far, distinct)
    pairs = {frozenset((pair["a"], pair["b"])): pair for pair in report["pairs"]}
    yield from _close(report, distinct, pairs)
    yield from _lengths(distinct)
    yield from _strangers(distinct, pairs)
    labels = {row["label"] for row in distinct}
    within = [pair for key, pair in pairs.items() if key <= labels and pair["cosine"] is not None]
    if within:
        yield from _together(report, within, len(distinct) == len(rows))
    if distinct and len(distinct) == len(rows):
        yield from _methods(report, density)
    elif distinct:
        text = (
            "The numbers for methods include all of these models; remove the ones that don't belong, and run analyze again."
        )
        yield _said("again", [], text, False)


def _said(code: str, rows: Sequence[Row], text: str, warning: bool = True) -> dict[str, Any]:
    return {"code": code, "about": [row["label"] for row in rows], "warning": warning, "text": text}


def _name(row: Row) -> str:
    return f"{row['label']} ({row['path']})"


def _refused(report: Row) -> Iterator[dict[str, Any]]:
    """Yield the findings for which a merge would refuse these models."""
    apart = "They are not measured in these models, and a merge would be refused."
    for code, what, consequence in (
        ("not_finite", "with NaN or Inf", apart),
        ("missing", "missing in some models", "A merge would be refused."),
        ("different_shapes", "with other shapes than in the base", apart),
        (
            "different_integers",
            "of integers or booleans that differ from the base",
            "A merge copies such tensors, so it would be refused.",
        ),
    ):
        if held := report[code]:
            named = [f"{name} ({', '.join(where)})" for name, where in list(held.items())[:NAMED]]
            more = f" and {count(len(held) - NAMED)} more" if len(held) > NAMED else ""
            labels = {label for where in held.values() for label in where}
            rows = [row for row in report["models"] if row["label"] in labels]
            yield _said(code, rows, f"Tensors {what}: {', '.join(named)}{more}. {consequence}")
    if not report["compared_tensors"]:
        yield _said("nothing", [], "No model has a tensor of the base, so there is nothing to measure.")


# --- models that don't belong --------------------------------------------------------------------------------------------


def _elsewhere(report: Row, far: Sequence[Row], others: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """Yield findings about models that were probably not fine-tuned from this base."""
    if len(far) > 1 and len(far) == len(report["models"]):
        lengths = {row["label"]: row["norm"] for row in far}
        near = [pair["distance"] <= FAR * min(lengths[pair["a"]], lengths[pair["b"]]) for pair in _known(report, "distance")]
        if len(near) == len(report["pairs"]) and all(near):
            least = min(row["relative"] for row in far)
            yield _said(
                "wrong_base",
                far,
                f"All models are far from the base (at least {least:.2g} times its norm) but near each other: they were"
                " probably fine-tuned from another model than --base_model_path.",
            )
            return
    usual = median(row["relative"] for row in others) if others and all(row["relative"] for row in others) else None
    for row in far:
        than = f" (median of the others: {usual:.2g})" if usual else ""
        cosine = "" if row["base_cosine"] is None else f", and the cosine of the two models is {row['base_cosine']:.2f}"
        yield _said(
            "another_run",
            [row],
            f"{_name(row)} was probably not fine-tuned from this base: the norm of its task vector is {row['relative']:.2g}"
            f" times the base's norm{than}{cosine}. After fine-tuning the ratio is usually 0.01 to 0.1; for unrelated models"
            " it is about 1.4. A merge of models from different bases or training runs usually doesn't work.",
        )


def _lengths(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """Yield findings about task vectors that are much longer or shorter than the others."""
    for row in rows:
        others = [other["norm"] for other in rows if other is not row]
        if row["norm"] is None or None in others or not others:
            continue
        times, least = row["norm"] / median(others), row["norm"] / min(others)
        whose = "the median of the others" if len(others) > 1 else "the other"
        if times >= LONG:
            yield _said(
                "long",
                [row],
                f"{_name(row)} has a task vector {times:.3g} times as long as {whose}, so it dominates an average. Give it a"
                " smaller weight (--weight_list), or check whether it belongs here.",
            )
        elif least <= 1 / LONG and len(others) > 1:
            yield _said(
                "short",
                [row],
                f"The other task vectors are at least {1 / least:.3g} times as long as that of {_name(row)}, so it has"
                " little effect in an average. Give it a larger weight (--weight_list).",
            )


def _close(report: Row, rows: Sequence[Row], pairs: Mapping[frozenset[str], Row]) -> Iterator[dict[str, Any]]:
    by_label = {row["label"]: row for row in report["models"]}
    for pair in report["pairs"]:
        two = [by_label[pair["a"]], by_label[pair["b"]]]
        if pair["identical"] and not two[0]["equals_base"]:
            names = " and ".join(map(_name, two))
            yield _said("identical", two, f"{names} are identical, so this model counts twice. Remove one of them.")
    labels = {row["label"] for row in rows}
    known = [pair for key, pair in pairs.items() if key <= labels and pair["cosine"] is not None]
    if alike := [pair for pair in known if pair["cosine"] >= ALIKE]:
        cosines = _span([pair["cosine"] for pair in alike], "{:.3f}")
        text = "have almost the same task vector, as checkpoints of one run do, so they count twice in averages and votes."
        yield _said("alike", _of(alike, rows), f"{_pairs(alike)} {text} Cosine: {cosines}.", False)
    if against := [pair for pair in known if pair["cosine"] <= AGAINST]:
        cosines = _span([pair["cosine"] for pair in against], "{:.2f}")
        text = "have opposed task vectors, so parts of their changes cancel when they are added."
        yield _said("against", _of(against, rows), f"{_pairs(against)} {text} Cosine: {cosines}.")


def _pairs(pairs: Sequence[Row]) -> str:
    more = f" and {count(len(pairs) - NAMED)} more pairs" if len(pairs) > NAMED else ""
    return ", ".join(f"{pair['a']} and {pair['b']}" for pair in pairs[:NAMED]) + more


def _of(pairs: Sequence[Row], rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if any(row["label"] in (pair["a"], pair["b"]) for pair in pairs)]


def _strangers(rows: Sequence[Row], pairs: Mapping[frozenset[str], Row]) -> Iterator[dict[str, Any]]:
    """Yield findings about models whose task vector is unrelated to the others, which are related to each other."""
    labels = [row["label"] for row in rows]
    for row in rows if len(rows) > 2 else ():
        mine = [pairs[frozenset((row["label"], other))]["cosine"] for other in labels if other != row["label"]]
        theirs = [pair["cosine"] for key, pair in pairs.items() if key <= set(labels) and row["label"] not in key]
        if None in mine or None in theirs:
            continue
        if mean(mine) <= ALONE and mean(theirs) >= TOGETHER:
            yield _said(
                "stranger",
                [row],
                f"The task vector of {_name(row)} is unrelated to the others: its mean cosine with them is {mean(mine):.2f},"
                f" and theirs with each other {mean(theirs):.2f}. The model was probably trained on other data, or"
                " differently.",
            )


# --- choosing a method ---------------------------------------------------------------------------------------------------


def _together(report: Row, pairs: Sequence[Row], everyone: bool) -> Iterator[dict[str, Any]]:
    cosines = [pair["cosine"] for pair in pairs]
    span = _span(cosines, "{:.2f}")
    linear = _method(report, "linear")
    norms = [row["norm"] for row in report["models"] if row["norm"]]
    if max(map(abs, cosines)) < UNRELATED:
        shorter = ""
        if everyone and report["average_norm"]:
            share = report["average_norm"] / mean(norms)
            shorter = f"; their average is only {share:.2f} times as long as they are, which --scale can compensate"
        yield _said(
            "unrelated",
            [],
            f"The cosines are near 0 ({span}), as for models fine-tuned on different tasks, so the sum of the task vectors"
            f" (linear with --no_normalize) keeps nearly all of each{shorter}.",
            False,
        )
    elif mean(cosines) >= RELATED:
        yield _said(
            "related",
            [],
            f"The task vectors have similar directions (cosines {span}), so an average (linear, or slerp of two) loses"
            " little. Their sum (--no_normalize) is longer than any of them.",
            False,
        )
    else:
        yield _said("cosines", [], f"The cosines of the task vectors are {span}.", False)
    overlaps = [pair["overlap"] for pair in pairs]
    if None not in overlaps and max(overlaps) < SPARSE:
        yield _said(
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
        yield _said(
            "signs",
            [],
            f"Of the elements that both models of a pair changed, {_span(conflicts, '{:.0%}')} have different signs; for"
            f" unrelated changes, 50% do.{instead}",
            False,
        )


def _methods(report: Row, density: float) -> Iterator[dict[str, Any]]:
    at = f"At --reserve_p {density:g}"
    if ties := _method(report, "ties"):
        trimmed, elected, total = (
            ties[name]["mass"] for name in ("dropped_by_sparsifier", "dropped_by_election", "dropped")
        )
        if ties["dropped_by_sparsifier"]["elements"] == 0 and density < 1:
            yield _said(
                "nothing_trimmed",
                [],
                f"{at}, trim drops nothing, because it keeps more elements than changed ({_changed(report)}).",
                False,
            )
        if None not in (trimmed, elected, total):
            yield _said(
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
            yield _said(
                "dare_noise",
                [],
                f"{at}, dare adds noise to each task vector of {noise:.2g} times its length. DARE's authors report that it"
                f" works for changes up to about {SMALL:g}; here their mean magnitude is {size}, which is {verdict} that.",
                False,
            )


def _changed(report: Row) -> str:
    return _span([row["changed_fraction"] for row in report["models"] if row["changed_fraction"] is not None], "{:.1%}")


def _span(values: Sequence[float], form: str) -> str:
    """Return the range of values as text, each in the format `form`."""
    least, most = form.format(min(values) + 0.0), form.format(max(values) + 0.0)
    return least if least == most else f"{least} to {most}"


def _method(report: Row, name: str) -> Row | None:
    return next((row for row in report["methods"] if row["method"] == name), None)


def _known(report: Row, name: str) -> list[Row]:
    return [pair for pair in report["pairs"] if pair[name] is not None and math.isfinite(pair[name])]
