"""Print an analysis as text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from ..tables import count, facts, number, percent, table

Row = Mapping[str, Any]


def lines(report: Row, top: int) -> Iterator[str]:
    """Yield the lines of a report: findings, then totals, then up to `top` kinds of tensors, layers, and tensors."""
    legend = [("base", report["base"]), *((row["label"], row["path"]) for row in report["models"])]
    yield from facts(legend, 0)
    yield ""
    said = [("warning" if one["warning"] else "note", one["text"]) for one in report["advice"]]
    yield from facts(said + [("note", note) for note in report["notes"]] or [("note", "no findings")], 0)
    if not report["compared_tensors"]:
        return
    yield ""
    yield from table(
        ("task vectors", "norm", "relative", "max", "mean", "changed", "tensors"), list(map(_model, report["models"]))
    )
    if report["pairs"]:
        yield ""
        headings = ("pairs", "cosine", "overlap", "of trimmed", "sign conflict", "by weight")
        yield from table(headings, [(f"{row['a']}-{row['b']}", *_pair(row)) for row in report["pairs"]])
    yield ""
    yield from _methods(report)
    yield ""
    yield from _groups(report, top)


def cosine(value: float | None) -> str:
    """Return a cosine with four decimals; "-" if it isn't defined."""
    return "-" if value is None else f"{round(value, 4) + 0.0:.4f}"


def flags(report: Row) -> str:
    """Return the parameters of the methods as flags."""
    return (
        f"--reserve_p {report['reserve_p']:g} --epsilon {report['epsilon']:g}{'' if report['rescale'] else ' --no_rescale'}"
    )


def _model(row: Row) -> tuple[str, ...]:
    tensors = f"{count(row['changed_tensors'])} of {count(row['compared_tensors'])}"
    numbers = (number(row[name]) for name in ("norm", "relative", "largest", "mean"))
    return row["label"], *numbers, percent(row["changed_fraction"]), tensors


def _pair(row: Row) -> tuple[str, ...]:
    shares = (row[name] for name in ("overlap", "trimmed_overlap", "sign_conflict", "weighted_sign_conflict"))
    return cosine(row["cosine"]), *map(percent, shares)


def _methods(report: Row) -> list[str]:
    rows = []
    for row in report["methods"]:
        elected = row["dropped_by_election"] or {"mass": None}
        shares = (row["dropped"]["elements"], row["dropped"]["mass"], row["dropped_by_sparsifier"]["mass"], elected["mass"])
        rows.append((row["method"], *map(percent, shares), percent(row["cancelled"]), number(row["sparsified_distance"])))
    headings = ("method", "elements", "mass", "sparsified", "outvoted", "cancels", "moves")
    return [f"share of the changes that each method drops, with {flags(report)}", *table(headings, rows)]


def _groups(report: Row, top: int) -> list[str]:
    """Return a table of groups of tensors: the model that changed most, and the extreme values of the pairs."""
    rows: list[tuple[str, ...]] = []
    for title, groups in (
        ("kinds of tensors", [(row["kind"], row) for row in report["kinds"]]),
        ("layers", [(f"{row['stack']}.{row['layer']}", row) for row in report["layers"]]),
        ("tensors", [(row["name"], row) for row in report["tensors"]]),
    ):
        changed = sorted((pair for pair in groups if _farthest(pair[1])[1]), key=lambda pair: -_farthest(pair[1])[1])
        if not changed or not top:
            continue
        more = f" ({top} of {count(len(changed))})" if len(changed) > top else ""
        rows += [("",)] if rows else []
        rows.append((f"{title} that changed most{more}",))
        rows += [(f"  {name}", *_group(row)) for name, row in changed[:top]]
    headings = ("", "relative", "model", "min cosine", "max cosine", "min overlap", "max conflict")
    return table(headings, rows) if rows else []


def _farthest(row: Row) -> tuple[str, float]:
    """Return the model that changed most there, and its relative change, infinite if the base is all zeros."""
    moved = {label: one for label, one in row["models"].items() if one["changed"]}
    far = {label: math.inf if one["relative"] is None else one["relative"] for label, one in moved.items()}
    return max(far.items(), key=lambda pair: pair[1], default=("", 0.0))


def _group(row: Row) -> tuple[str, ...]:
    label, _ = _farthest(row)
    found = {
        name: [pair[name] for pair in row["pairs"].values() if pair[name] is not None]
        for name in ("cosine", "overlap", "sign_conflict")
    }
    cosines = found["cosine"]
    return (
        number(row["models"][label]["relative"]),
        label,
        cosine(min(cosines, default=None)),
        cosine(max(cosines, default=None)),
        percent(min(found["overlap"], default=None)),
        percent(max(found["sign_conflict"], default=None)),
    )
