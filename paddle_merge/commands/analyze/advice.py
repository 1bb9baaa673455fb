"""Derive findings from the measurements: sentences that say what was measured and what it usually means.

The thresholds are round numbers between values that are usual for fine-tuned models and values that aren't.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import mean, median
from typing import Any

from ..tables import count
from .findings import Row, finding, span
from .method_advice import methods, together

FAR = 0.5  # ||task vector|| / ||base||: about 0.01 to 0.1 after fine-tuning, about 1.4 for two unrelated models
LONG = 10.0  # ||task vector|| / median of the others
ALONE, TOGETHER = 0.1, 0.3  # mean cosine of a model with the others, and of the others with each other
ALIKE, AGAINST = 0.95, -0.1  # cosine of a pair
NAMED = 3  # tensors and pairs named in one sentence


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
        yield finding("equals_base", [row], f"{_name(row)} {text}")
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
        yield from together(report, within, len(distinct) == len(rows))
    if distinct and len(distinct) == len(rows):
        yield from methods(report, density)
    elif distinct:
        text = (
            "The numbers for methods include all of these models; remove the ones that don't belong, and run analyze again."
        )
        yield finding("again", [], text, False)


def _name(row: Row) -> str:
    return f"{row['label']} ({row['path']})"


def _refused(report: Row) -> Iterator[dict[str, Any]]:
    """Yield the findings for which a merge would refuse these models, or warn of them."""
    apart = "They are not measured in these models, and a merge"
    for code, what, consequence in (
        ("not_finite", "with NaN or Inf", f"{apart} would warn of them, or with --strict be refused."),
        (
            "missing",
            "missing in some models",
            "A merge unties an lm_head, averages the models' own heads, and leaves buffers out; where others are missing it"
            " is refused, unless --missing_tensors says what becomes of them.",
        ),
        ("different_shapes", "with other shapes than in the base", f"{apart} would be refused."),
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
            yield finding(code, rows, f"Tensors {what}: {', '.join(named)}{more}. {consequence}")
    if not report["compared_tensors"]:
        yield finding("nothing", [], "No model has a tensor of the base, so there is nothing to measure.")


# --- models that don't belong --------------------------------------------------------------------------------------------


def _elsewhere(report: Row, far: Sequence[Row], others: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """Yield findings about models that were probably not fine-tuned from this base."""
    if len(far) > 1 and len(far) == len(report["models"]):
        lengths = {row["label"]: row["norm"] for row in far}
        near = [pair["distance"] <= FAR * min(lengths[pair["a"]], lengths[pair["b"]]) for pair in _known(report, "distance")]
        if len(near) == len(report["pairs"]) and all(near):
            least = min(row["relative"] for row in far)
            yield finding(
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
        yield finding(
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
            yield finding(
                "long",
                [row],
                f"{_name(row)} has a task vector {times:.3g} times as long as {whose}, so it dominates an average. Give it a"
                " smaller weight (--weight_list), or check whether it belongs here.",
            )
        elif least <= 1 / LONG and len(others) > 1:
            yield finding(
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
            yield finding("identical", two, f"{names} are identical, so this model counts twice. Remove one of them.")
    labels = {row["label"] for row in rows}
    known = [pair for key, pair in pairs.items() if key <= labels and pair["cosine"] is not None]
    if alike := [pair for pair in known if pair["cosine"] >= ALIKE]:
        cosines = span([pair["cosine"] for pair in alike], "{:.3f}")
        text = "have almost the same task vector, as checkpoints of one run do, so they count twice in averages and votes."
        yield finding("alike", _of(alike, rows), f"{_pairs(alike)} {text} Cosine: {cosines}.", False)
    if against := [pair for pair in known if pair["cosine"] <= AGAINST]:
        cosines = span([pair["cosine"] for pair in against], "{:.2f}")
        text = "have opposed task vectors, so parts of their changes cancel when they are added."
        yield finding("against", _of(against, rows), f"{_pairs(against)} {text} Cosine: {cosines}.")


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
            yield finding(
                "stranger",
                [row],
                f"The task vector of {_name(row)} is unrelated to the others: its mean cosine with them is {mean(mine):.2f},"
                f" and theirs with each other {mean(theirs):.2f}. The model was probably trained on other data, or"
                " differently.",
            )


def _known(report: Row, name: str) -> list[Row]:
    return [pair for pair in report["pairs"] if pair[name] is not None and math.isfinite(pair[name])]
