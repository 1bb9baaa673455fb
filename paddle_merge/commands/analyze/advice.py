"""Sentences that follow from the measurements: what was measured, and what it usually means. The thresholds are round
numbers between what fine-tuning usually gives and what it doesn't."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import mean, median
from typing import Any

from ..tables import count, percent

FAR = 0.5  # ||task vector|| / ||base||: fine-tuning gives hundredths, two unrelated models about 1.4
LONG = 10.0  # times the others' median
ALONE, TOGETHER = 0.1, 0.3  # mean cosine with the others; and among the others
ALIKE, AGAINST = 0.95, -0.1  # cosine of two
UNRELATED, RELATED = 0.1, 0.3  # cosines of all
SPARSE = 0.1  # overlap below which models changed different elements
SMALL = 0.002  # magnitude of changes up to which DARE's authors report it to work
NAMED = 3

Row = Mapping[str, Any]


def advice(report: Row, density: float) -> list[dict[str, Any]]:
    """Of what report.py makes: sentences with the labels of the models that they are about, none if about all, and whether
    they are warnings; `code` is for programs."""
    return list(_advice(report, density))


def _advice(report: Row, density: float) -> Iterator[dict[str, Any]]:
    yield from _refused(report)
    rows = report["models"]
    same = [row for row in rows if row["equals_base"]]
    for row in same:
        text = "is the base model: no element differs, so its task vector is zero. It only weakens an average; leave it out."
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
        text = "What methods drop is measured with all of these; leave out what doesn't belong, and analyse the others."
        yield _said("again", [], text, False)


def _said(code: str, rows: Sequence[Row], text: str, warning: bool = True) -> dict[str, Any]:
    return {"code": code, "about": [row["label"] for row in rows], "warning": warning, "text": text}


def _name(row: Row) -> str:
    return f"{row['label']} ({row['path']})"


def _refused(report: Row) -> Iterator[dict[str, Any]]:
    """What no merge would take."""
    for code, what in (
        ("not_finite", "hold NaN or Inf; they were left out there, and a merge refuses them"),
        ("missing", "are missing in some; a merge refuses that"),
        ("different_shapes", "have other shapes than in the base; they were left out there, and a merge refuses them"),
        ("different_integers", "are integers or booleans and differ from the base's; a merge copies such, and refuses them"),
    ):
        if held := report[code]:
            named = [f"{name} ({', '.join(where)})" for name, where in list(held.items())[:NAMED]]
            more = f" and {count(len(held) - NAMED)} more" if len(held) > NAMED else ""
            labels = {label for where in held.values() for label in where}
            rows = [row for row in report["models"] if row["label"] in labels]
            yield _said(code, rows, f"{count(len(held))} tensor{'s' * (len(held) > 1)} {what}: {', '.join(named)}{more}.")
    if not report["compared_tensors"]:
        yield _said("nothing", [], "No tensor of the base is in any of the models, so there is nothing to measure.")


# --- models that don't belong --------------------------------------------------------------------------------------------


def _elsewhere(report: Row, far: Sequence[Row], others: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """Models that weren't fine-tuned from this base; others may be."""
    if len(far) > 1 and len(far) == len(report["models"]):
        lengths = {row["label"]: row["norm"] for row in far}
        near = [pair["distance"] <= FAR * min(lengths[pair["a"]], lengths[pair["b"]]) for pair in _known(report, "distance")]
        if len(near) == len(report["pairs"]) and all(near):
            least = min(row["relative"] for row in far)
            yield _said(
                "wrong_base",
                far,
                f"All models are far from the base (at least {least:.2g} times its norm) but near to each other: they were"
                " likely fine-tuned from another model than --base_model_path.",
            )
            return
    usual = median(row["relative"] for row in others) if others and all(row["relative"] for row in others) else None
    for row in far:
        than = f" (the others: {usual:.2g})" if usual else ""
        cosine = "" if row["base_cosine"] is None else f", and the cosine of the two models is {row['base_cosine']:.2f}"
        yield _said(
            "another_run",
            [row],
            f"{_name(row)} doesn't look fine-tuned from this base: it is {row['relative']:.2g} times the base's norm away"
            f" from it{than}{cosine}. Fine-tuning usually gives hundredths, and unrelated models lie about 1.4 apart. Looks"
            " like another training run, or another base: merged with models of this base it usually breaks both.",
        )


def _lengths(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """Task vectors of another length than the others'."""
    for row in rows:
        others = [other["norm"] for other in rows if other is not row]
        if row["norm"] is None or None in others or not others:
            continue
        times, least = row["norm"] / median(others), row["norm"] / min(others)
        whose = "the others' median" if len(others) > 1 else "the other's"
        if times >= LONG:
            yield _said(
                "long",
                [row],
                f"{_name(row)} has a task vector {times:.3g} times as long as {whose}: in an average it decides almost"
                " alone. Give it a smaller weight (--weight_list), or see whether it belongs here.",
            )
        elif least <= 1 / LONG and len(others) > 1:
            yield _said(
                "short",
                [row],
                f"{_name(row)} has a task vector {1 / least:.3g} times shorter than any other: an average hardly shows"
                " it."
                " Give it a larger weight (--weight_list).",
            )


def _close(report: Row, rows: Sequence[Row], pairs: Mapping[frozenset[str], Row]) -> Iterator[dict[str, Any]]:
    by_label = {row["label"]: row for row in report["models"]}
    for pair in report["pairs"]:
        two = [by_label[pair["a"]], by_label[pair["b"]]]
        if pair["identical"] and not two[0]["equals_base"]:
            names = " and ".join(map(_name, two))
            yield _said("identical", two, f"{names} are the same model: no element differs. It counts twice; leave one out.")
    labels = {row["label"] for row in rows}
    known = [pair for key, pair in pairs.items() if key <= labels and pair["cosine"] is not None]
    if alike := [pair for pair in known if pair["cosine"] >= ALIKE]:
        cosines = _span([pair["cosine"] for pair in alike], "{:.3f}")
        text = "changed almost alike, as checkpoints of one run do: in averages and votes they count twice."
        yield _said("alike", _of(alike, rows), f"{_pairs(alike)} {text} Cosine: {cosines}.", False)
    if against := [pair for pair in known if pair["cosine"] <= AGAINST]:
        cosines = _span([pair["cosine"] for pair in against], "{:.2f}")
        text = "changed against each other: added up, part of what each learned cancels."
        yield _said("against", _of(against, rows), f"{_pairs(against)} {text} Cosine: {cosines}.")


def _pairs(pairs: Sequence[Row]) -> str:
    more = f" and {count(len(pairs) - NAMED)} more pairs" if len(pairs) > NAMED else ""
    return ", ".join(f"{pair['a']} and {pair['b']}" for pair in pairs[:NAMED]) + more


def _of(pairs: Sequence[Row], rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if any(row["label"] in (pair["a"], pair["b"]) for pair in pairs)]


def _strangers(rows: Sequence[Row], pairs: Mapping[frozenset[str], Row]) -> Iterator[dict[str, Any]]:
    """One whose direction has nothing to do with the others', which have to do with each other."""
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
                f"{_name(row)} goes its own way: its mean cosine with the others is {mean(mine):.2f}, theirs with each other"
                f" {mean(theirs):.2f}. It was trained on something else, or otherwise.",
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
            shorter = f", while their average is only {share:.2f} times as long as they are (--scale makes up for that)"
        yield _said(
            "unrelated",
            [],
            f"Cosines are near 0 ({span}), as for models fine-tuned on different tasks: adding the task vectors (linear with"
            f" --no_normalize) keeps each nearly whole{shorter}.",
            False,
        )
    elif mean(cosines) >= RELATED:
        yield _said(
            "related",
            [],
            f"Task vectors point the same way (cosines {span}): an average (linear, or slerp of two) loses little; adding"
            f" them without normalising goes farther than any model went.",
            False,
        )
    else:
        yield _said("cosines", [], f"Task vectors have cosines of {span}.", False)
    overlaps = [pair["overlap"] for pair in pairs]
    if None not in overlaps and max(overlaps) < SPARSE:
        yield _said(
            "sparse",
            [],
            f"They changed different elements (of what changed in either of two, at most {percent(max(overlaps))} changed in"
            " both): there is little for sign election to settle.",
            False,
        )
        return
    conflicts = [pair["sign_conflict"] for pair in pairs if pair["sign_conflict"] is not None]
    if conflicts:
        instead = ""
        if everyone and linear and linear["cancelled"]:
            instead = (
                f" Added up by linear, {percent(linear['cancelled'])} of the changes' mass cancels there; ties, dare_ties"
                " and della elect a sign instead."
            )
        yield _said(
            "signs",
            [],
            f"Where two changed the same element, signs differ in {_span(conflicts, '{:.0%}')} of cases; unrelated changes"
            f" would give 50%.{instead}",
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
                f"{at}, trim drops nothing: fewer elements changed than it keeps ({_changed(report)} changed).",
                False,
            )
        if None not in (trimmed, elected, total):
            yield _said(
                "ties_drops",
                [],
                f"{at}, ties drops {percent(total)} of the changes' mass (sum of magnitudes): {percent(trimmed)} by"
                f" trimming, {percent(elected)} by electing signs.",
                False,
            )
    if dare := _method(report, "dare_linear"):
        means = [row["mean"] for row in report["models"] if row["mean"]]
        if dare["sparsified_distance"] and means:
            noise = dare["sparsified_distance"]
            size = f"{min(means):.2g}" if min(means) == max(means) else f"{min(means):.2g} to {max(means):.2g}"
            verdict = "larger than" if max(means) > SMALL else "within"
            yield _said(
                "dare_noise",
                [],
                f"{at}, dare moves each task vector at random by {noise:.2g} times its length. DARE's authors find that"
                f" harmless where changes are small, up to about {SMALL:g}; here their mean magnitude is {size}, which is"
                f" {verdict} that.",
                False,
            )


def _changed(report: Row) -> str:
    return _span([row["changed_fraction"] for row in report["models"] if row["changed_fraction"] is not None], "{:.1%}")


def _span(values: Sequence[float], form: str) -> str:
    """The smallest to the largest."""
    least, most = form.format(min(values) + 0.0), form.format(max(values) + 0.0)
    return least if least == most else f"{least} to {most}"


def _method(report: Row, name: str) -> Row | None:
    return next((row for row in report["methods"] if row["method"] == name), None)


def _known(report: Row, name: str) -> list[Row]:
    return [pair for pair in report["pairs"] if pair[name] is not None and math.isfinite(pair[name])]
