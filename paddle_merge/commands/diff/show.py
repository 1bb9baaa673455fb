"""Print a comparison as text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..tables import count, facts, number, percent, table

Row = Mapping[str, Any]
NAMED = 5  # names listed in one line
_COLUMNS = ("relative", "cosine", "max |A-B|", "mean |A-B|", "changed")


def lines(report: Mapping[str, Any], top: int) -> Iterator[str]:
    """Yield the lines of a report, with up to `top` rows in each part of the table. report: as returned by diff.compare."""
    yield f"A  {report['a']}"
    yield f"B  {report['b']}"
    yield ""
    yield from facts(list(_verdict(report)), 0)
    if report["total"]["elements"]:
        yield ""
        yield from _table(report, top)
        for units, buckets in report["distances"].items():
            if buckets.keys() - {"0"}:
                yield ""
                yield from _histogram(units, buckets)


def _verdict(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    total, tensors = report["total"], report["compared_tensors"]
    if report["same"]:
        yield "identical", f"all {count(tensors)} tensors, {count(total['elements'])} elements"
    elif total["changed"]:
        share = f"{count(total['changed'])} of {count(total['elements'])} elements ({percent(total['changed_fraction'])})"
        yield "different", f"{count(report['changed_tensors'])} of {count(tensors)} tensors, {share}"
    else:
        yield "different", f"but the {count(tensors)} tensors that both have are identical"
    for which in "ab":
        if names := report[f"only_in_{which}"]:
            yield f"only in {which.upper()}", _several(names)
    if shapes := report["different_shapes"]:
        yield "shapes", _several([f"{row['name']} is {row['a']} in A, {row['b']} in B" for row in shapes])
    for which in "ab":
        bad = [row for row in report["tensors"] if row[f"not_finite_{which}"]]
        if bad:
            held = [f"{row['name']} ({count(row[f'not_finite_{which}'])})" for row in bad]
            yield "NaN or Inf", f"in {which.upper()}, not included in sums: {_several(held)}"
    if large := [row["name"] for row in report["tensors"] if row["overflowed"]]:
        yield "overflow", f"of sums in float64, which are shown as -: {_several(large)}"
    if dtypes := report["different_dtypes"]:
        held = list(dict.fromkeys(f"{row['a']} in A and {row['b']} in B" for row in dtypes))
        yield "dtypes", f"{count(len(dtypes))} tensors are {_several(held)}, compared as numbers"
    for note in report["notes"]:
        yield "note", note


def _several(words: Sequence[str]) -> str:
    more = f" and {count(len(words) - NAMED)} more" if len(words) > NAMED else ""
    return f"{count(len(words))}: {', '.join(words[:NAMED])}{more}" if len(words) > 1 else words[0]


def _table(report: Mapping[str, Any], top: int) -> list[str]:
    rows: list[tuple[str, ...]] = [_cells("total", report["total"])]
    parts: dict[str, list[tuple[str, Row]]] = {
        "layers": [(f"{row['stack']}.{row['layer']}", row) for row in report["layers"]],
        "kinds of tensors": [(row["kind"], row) for row in report["kinds"]],
        "tensors": [(row["name"], row) for row in report["tensors"]],
    }
    for title, named in parts.items():
        changed = sorted((pair for pair in named if pair[1]["changed"]), key=lambda pair: _by_change(pair[1]))
        if not changed or not top:
            continue
        more = f" ({top} of {count(len(changed))})" if len(changed) > top else ""
        rows.append(("",))
        rows.append((f"{title} that changed most{more}",))
        rows += [_cells(f"  {name}", row) for name, row in changed[:top]]
    return table(("", *_COLUMNS), rows)


def _by_change(row: Row) -> tuple[float, float]:
    """Return the sort key that puts the largest relative change first, and tensors that were all zeros before all others."""
    return -(math.inf if row["relative"] is None else row["relative"]), -(row["max"] or 0.0)


def _cells(name: str, row: Row) -> tuple[str, ...]:
    cosine = "-" if row["cosine"] is None else f"{row['cosine']:.6f}"
    return name, number(row["relative"]), cosine, number(row["max"]), number(row["mean"]), percent(row["changed_fraction"])


def _histogram(units: str, buckets: Mapping[str, int]) -> list[str]:
    """Return the lines of a histogram. Empty buckets between others are shown, so that the bars give the true shape."""
    total, most = sum(buckets.values()), max(buckets.values())
    rows = [(name, count(held), percent(held / total), "#" * round(40 * held / most)) for name, held in buckets.items()]
    what = "difference" if "int" in units or units == "bool" else f"distance in units in the last place of {units}"
    columns = [[row[column] for row in rows] for column in range(3)]
    edges = [max(map(len, column)) for column in columns]
    return [
        f"{what}, number of elements, share",
        *(f"{a:>{edges[0]}}  {b:>{edges[1]}}  {c:>{edges[2]}}  {bar}".rstrip() for a, b, c, bar in rows),
    ]
