"""Make an HTML page of an analysis, in one file that needs no scripts, other files, or network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...drawing.html import document, heading, picture, safe, table
from ...drawing.svg import heat_map, line_chart
from ..tables import count, number, percent
from .show import cosine, flags

Row = Mapping[str, Any]

LISTED = 50  # tensors in the table
CHANCE = "For unrelated changes, cosines are near 0 and sign conflicts near 50%."
RELATIVE = "The norm of the task vector of each model divided by the norm of the base."


def page(report: Row) -> str:
    """Return the page. Names and paths come from files, so all text is escaped."""
    return document("Task vectors of the models", _parts(report), f"paddle_merge {report['paddle_merge_version']}")


def _parts(report: Row) -> Iterator[str]:
    legend = [("base", report["base"]), *((row["label"], row["path"]) for row in report["models"])]
    yield table(("model", "path"), legend, "words")
    yield "<h2>Findings</h2>"
    said = [(one["warning"], one["text"]) for one in report["advice"]] + [(False, note) for note in report["notes"]]
    items = [f"<li{' class=warning' if warning else ''}>{safe(text)}</li>" for warning, text in said]
    yield f'<ul class="said">{"".join(items or ["<li>None.</li>"])}</ul>'
    if not report["compared_tensors"]:
        return
    yield from _models(report)
    if report["pairs"]:
        yield from _pairs(report)
    yield from _methods(report)
    yield from _layers(report)
    yield from _kinds(report)
    yield from _tensors(report)


def _models(report: Row) -> Iterator[str]:
    yield heading(
        "Task vectors",
        "A task vector is model minus base. Relative: its norm divided by the norm of the base. Max and mean: of the"
        " magnitudes of the elements that changed.",
    )
    headings = ("", "norm", "relative", "max", "mean", "changed", "tensors changed", "largest in")
    rows = []
    for row in report["models"]:
        numbers = [number(row[name]) for name in ("norm", "relative", "largest", "mean")]
        tensors = f"{count(row['changed_tensors'])} of {count(row['compared_tensors'])}"
        rows.append((row["label"], *numbers, percent(row["changed_fraction"]), tensors, row["longest_tensor"] or "-"))
    yield table(headings, rows)


def _pairs(report: Row) -> Iterator[str]:
    yield heading(
        "Pairs",
        "Overlap: the number of elements that changed in both models, divided by the number that changed in either; of"
        f" trimmed: the same of the elements that trim keeps at --reserve_p {report['reserve_p']:g}. Sign conflict: the"
        " share of the elements changed in both whose signs differ; by weight: with each element weighted by the magnitude"
        f" of the product of both changes. {CHANCE}",
    )
    labels = [row["label"] for row in report["models"]]
    between = {(row["a"], row["b"]): row["cosine"] for row in report["pairs"]}
    between |= {(b, a): value for (a, b), value in between.items()}
    if len(labels) > 2:
        yield picture(
            "Cosines", heat_map(labels, labels, [[between.get((a, b)) for b in labels] for a in labels], "{:.2f}", 1.0)
        )
    headings = ("", "cosine", "overlap", "of trimmed", "sign conflict", "by weight")
    names = ("overlap", "trimmed_overlap", "sign_conflict", "weighted_sign_conflict")
    pairs = report["pairs"]
    rows = [(f"{row['a']}-{row['b']}", cosine(row["cosine"]), *(percent(row[name]) for name in names)) for row in pairs]
    yield table(headings, rows)


def _methods(report: Row) -> Iterator[str]:
    yield heading(
        "What each method would drop",
        f"Shares of the changes, with {flags(report)}, all weights 1 and seed 0: of the elements, and of the mass (the sum"
        " of magnitudes); the mass dropped by sparsifying, and by sign election. Cancels: the mass that is lost where signs"
        " differ when models are added. Moves: the distance between task vectors and sparsified task vectors, divided by the"
        " length of the task vectors; for dare and della this is noise, which averages out over many elements.",
    )
    rows = []
    for row in report["methods"]:
        elected = (row["dropped_by_election"] or {}).get("mass")
        shares = (row["dropped"]["elements"], row["dropped"]["mass"], row["dropped_by_sparsifier"]["mass"], elected)
        shown = (*map(percent, shares), percent(row["cancelled"]), number(row["sparsified_distance"]))
        rows.append((row["method"], *shown))
    yield table(("", "elements", "mass", "by sparsifying", "by election", "cancels", "moves"), rows)


def _layers(report: Row) -> Iterator[str]:
    for stack in dict.fromkeys(row["stack"] for row in report["layers"]):
        rows = sorted((row for row in report["layers"] if row["stack"] == stack), key=lambda row: int(row["layer"]))
        numbers = [row["layer"] for row in rows]
        labels = [row["label"] for row in report["models"]]
        moved = [[row["models"].get(label, {}).get("relative") for row in rows] for label in labels]
        yield heading(f"Layers of {stack}", RELATIVE)
        yield picture("", line_chart(labels, numbers, moved, "layer"))
        yield from _maps(report, [(str(row["layer"]), row) for row in rows])


def _kinds(report: Row) -> Iterator[str]:
    yield heading("Kinds of tensors", RELATIVE)
    labels = [row["label"] for row in report["models"]]
    rows = [(row["kind"], row) for row in report["kinds"]]
    values = [[row["models"].get(label, {}).get("relative") for label in labels] for _, row in rows]
    yield picture("", heat_map([name for name, _ in rows], labels, values, "{:.2g}", _largest(values)))
    yield from _maps(report, rows)


def _largest(values: Sequence[Sequence[float | None]]) -> float:
    return max((value for row in values for value in row if value is not None), default=0.0)


def _maps(report: Row, rows: Sequence[tuple[str, Row]]) -> Iterator[str]:
    """Yield heat maps of the cosines and sign conflicts of all pairs."""
    pairs = [f"{pair['a']}-{pair['b']}" for pair in report["pairs"]]
    if not pairs:
        return
    names = [name for name, _ in rows]

    def values(what: str) -> list[list[float | None]]:
        return [[row["pairs"].get(pair, {}).get(what) for pair in pairs] for _, row in rows]

    yield '<div class="two">'
    yield picture("Cosine of task vectors", heat_map(names, pairs, values("cosine"), "{:.2f}", 1.0))
    yield picture(
        "Sign conflict",
        heat_map(rows=names, columns=pairs, values=values("sign_conflict"), form="{:.0%}", most=0.5, middle=0.5),
    )
    yield "</div>"


def _tensors(report: Row) -> Iterator[str]:
    def farthest(row: Row) -> float:
        return max((one["relative"] or 0.0 for one in row["models"].values()), default=0.0)

    moved = sorted((row for row in report["tensors"] if farthest(row)), key=farthest, reverse=True)
    yield heading(
        "Tensors",
        f"The {count(min(LISTED, len(moved)))} of {count(len(report['tensors']))} that changed most: the norms of task"
        " vectors divided by the norm of the base, and the smallest and largest cosine of a pair. --json gives all numbers.",
    )
    labels = [row["label"] for row in report["models"]]
    rows = []
    for row in moved[:LISTED]:
        known = [pair["cosine"] for pair in row["pairs"].values() if pair["cosine"] is not None]
        relative = [number(row["models"].get(label, {}).get("relative")) for label in labels]
        rows.append((row["name"], *relative, cosine(min(known, default=None)), cosine(max(known, default=None))))
    yield table(("", *labels, "min cosine", "max cosine"), rows)
