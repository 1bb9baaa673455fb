"""Show the checkpoints of a run, and which are averaged with which weights, as text and JSON."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ...parsing import one_line, size_text
from ..tables import number, table
from .choose import Found, Member

if TYPE_CHECKING:
    from ...search.outcome import Scored
    from ...search.soup import Soup

MOST = 3  # metrics in the table


def lines(found: Found) -> list[str]:
    """Return a table of the checkpoints, and sentences on those that can't be averaged and on what else is there."""
    metrics = list(dict.fromkeys(name for member in found.members for name in member.metrics or {}))[:MOST]
    corrected = any(member.correction is not None for member in found.chosen)
    headings = ["checkpoint", "size", *metrics, *(["corrected by"] if corrected else []), "weight"]
    rows = []
    for member in found.members:
        cells = [number((member.metrics or {}).get(name)) for name in metrics]
        cells += [_correction(member)] if corrected else []
        weight = "can't" if member.why_not else f"{member.weight:.4f}" if member.weight else "-"
        rows.append([_name(found, member), size_text(member.nbytes) if member.nbytes else "-", *cells, weight])
    made = table(headings, rows)
    made += [""] if any(member.why_not for member in found.members) or found.others else []
    made += [f"{_name(found, member)} is left out: {one_line(member.why_not)}" for member in found.members if member.why_not]
    if found.others:
        others = ", ".join(f"{count} {kind}" for kind, count in found.others.items())
        made.append(f"there are also {others} (--kind)")
    return made


def as_json(found: Found) -> dict[str, Any]:
    """Return the same as JSON values."""
    return {
        "run": found.run,
        "kind": found.kind,
        "checkpoints": [_entry(member) for member in found.members],
        "others": dict(found.others),
    }


def _entry(member: Member) -> dict[str, Any]:
    said: dict[str, Any] = {"path": member.spec, "step": member.saved.step, "weight": member.weight}
    said |= {"bytes": member.nbytes} if member.nbytes else {}
    said |= {"metrics": dict(member.metrics)} if member.metrics else {}
    said |= {"left_out": member.why_not} if member.why_not else {}
    if member.correction is not None:
        said |= {"updates": member.correction.updates, "divided_by": member.correction.share}
    return said


def _name(found: Found, member: Member) -> str:
    return os.path.relpath(member.saved.path, found.run)


def _correction(member: Member) -> str:
    if member.correction is None:
        return "-"
    its = member.correction
    return f"1 - {its.coef:g}^{its.updates} = {its.share:.4g}" if its.updates else "nothing"


def soup_lines(soup: Soup) -> list[str]:
    """Return what a greedy soup was made of: the scores of checkpoints and averages, and on the report split."""
    (objective,) = soup.spec.objectives

    def score(one: Scored) -> str:
        return "failed" if one.known.error else number(one.known.metrics[objective])

    rows = [[one.title, score(one), ""] for one in soup.singles]
    rows += [["averages, in the order in which they were tried"]]
    for added, one in soup.tried.items():
        rows.append([f"+ {soup.singles[added].title}", score(one), "stays" if added in soup.members else "left out"])
    rows += [[soup.average.title, score(soup.average), ""], ["the greedy soup", score(soup.result), ""]]
    made = ["", *table(["", objective, ""], rows)]
    if soup.reported:
        there = [
            [title, "failed" if result.error else number(result.metrics[objective])]
            for title, result in soup.reported.items()
        ]
        made += ["", "on the report split:", "", *table(["", objective], there)]
    results = {one.title: one.known for one in (*soup.singles, *soup.tried.values(), soup.average)}
    failures = {title: its.error for title, its in (*results.items(), *soup.reported.items()) if its.error}
    made += ["", *(f"{one_line(title)} failed: {one_line(error)}" for title, error in failures.items())]
    made.append(f"{len(soup.members)} of {len(soup.singles)} checkpoints stayed, in {soup.seconds:.1f} s.")
    return made
