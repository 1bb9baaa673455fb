"""Compare the values of two checkpoints: headers -> pairs of tensors -> worker threads -> a report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ...backends.kernels.comparing import BUCKETS
from ...backends.scratch import Scratch
from ...checkpoints.files import Files
from ...checkpoints.names import layer_of, word_of
from ...checkpoints.scaled import ScaledEntry
from ...checkpoints.tensors import Checkpoint
from ...conversion.inputs import open_together
from ...dtypes import DTYPES, FLOAT32
from ...records import record
from ...version import __version__
from ..threads import in_threads
from .measure import Buffers, Pair, Sums, added, measure


@record(frozen=True)
class Models:
    """Both checkpoints, with adapters folded in, in one layout.

    layout: None if it is unknown. notes: sentences that say how the checkpoints were brought to one layout.
    """

    a: Checkpoint
    b: Checkpoint
    layout: str | None
    notes: list[str]

    @property
    def has_layers(self) -> bool:
        """Whether the name of any tensor that both have contains the number of a layer."""
        return any(layer_of(name) for name in self.a.tensors if name in self.b.tensors)


def open_models(specs: tuple[str, str], layouts: tuple[str | None, str | None], prefix: str) -> Models:
    """Open two checkpoints from their headers. Raises CheckpointError listing everything that is wrong with either."""
    opened = open_together(specs, layouts, prefix)
    a, b = map(_exact, opened.checkpoints)
    return Models(a, b, opened.layout, opened.notes)


def _exact(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint with quantised tensors in float32, in which they are computed: rounded to the dtype that they
    stand for, tensors whose scales differ a little would count as equal."""
    exact = {
        name: replace(entry, dtype=FLOAT32) if isinstance(entry, ScaledEntry) else entry
        for name, entry in checkpoint.tensors.items()
    }
    return replace(checkpoint, tensors=exact)


def compare(models: Models, n_process: int, progress: bool | None = None) -> dict[str, Any]:
    """Return the report, as `diff --json` prints it. Raises WorkError.

    progress: whether to show a progress bar; None: if standard error is a terminal.
    """
    a, b = models.a.tensors, models.b.tensors
    both = [name for name in a if name in b]
    pairs = [Pair(a[name], b[name]) for name in both if a[name].shape == b[name].shape]
    measured = _measure(pairs, n_process, progress)
    only_in_a, only_in_b = [name for name in a if name not in b], [name for name in b if name not in a]
    shapes = [name for name in both if a[name].shape != b[name].shape]
    total = added(measured)
    by_units = _groups(pairs, measured, lambda pair: pair.units.name if pair.units else None)
    in_layers = _groups(pairs, measured, lambda pair: (layer_of(pair.name), word_of(pair.name)))
    order = [dtype.name for dtype in DTYPES if dtype.name in by_units]
    return {
        "paddle_merge_version": __version__,
        "a": models.a.path,
        "b": models.b.path,
        "layout": models.layout,
        "notes": models.notes,
        "same": not (total.changed or only_in_a or only_in_b or shapes),
        "only_in_a": only_in_a,
        "only_in_b": only_in_b,
        "different_shapes": [{"name": name, "a": list(a[name].shape), "b": list(b[name].shape)} for name in shapes],
        "different_dtypes": [
            {"name": pair.name, "a": pair.a.dtype.name, "b": pair.b.dtype.name}
            for pair in pairs
            if pair.a.dtype != pair.b.dtype
        ],
        "compared_tensors": len(pairs),
        "changed_tensors": sum(bool(sums.changed) for sums in measured),
        "total": _row(total),
        "distances": {name: _buckets(by_units[name].buckets) for name in order},
        "layers": [
            {"stack": stack, "layer": layer, **_row(sums)}
            | {"relative_by_kind": {kind: one.relative for (its, kind), one in in_layers.items() if its == (stack, layer)}}
            for (stack, layer), sums in _groups(pairs, measured, lambda pair: layer_of(pair.name)).items()
        ],
        "kinds": [
            {"kind": kind, **_row(sums)} for kind, sums in _groups(pairs, measured, lambda pair: word_of(pair.name)).items()
        ],
        "tensors": [
            {"name": pair.name, "shape": list(pair.a.shape), "dtype": pair.a.dtype.name, **_row(sums)}
            | {"distances": _buckets(sums.buckets), "units": pair.units.name if pair.units else None}
            for pair, sums in zip(pairs, measured, strict=True)
        ],
    }


# --- the work ----------------------------------------------------------------------------------------------------------


def _measure(pairs: Sequence[Pair], n_process: int, progress: bool | None) -> list[Sums]:
    """Return the sums of each pair, in order. Raises WorkError."""
    pieces = [(number, start, stop) for number, pair in enumerate(pairs) for start, stop in pair.pieces()]
    nbytes = sum(pair.size * (pair.a.dtype.itemsize + pair.b.dtype.itemsize) for pair in pairs)

    def worker(files: Files, advance: Callable[[int], None]) -> Callable[[int], Sums]:
        buffers = Buffers(Scratch(), Scratch())

        def work(which: int) -> Sums:
            number, start, stop = pieces[which]
            return measure(pairs[number], start, stop, files, advance, buffers)

        return work

    sizes = [stop - start for _, start, stop in pieces]
    measured = in_threads(
        worker=worker, sizes=sizes, n_process=n_process, nbytes=nbytes, what="comparing", progress=progress
    )
    parts: list[list[Sums]] = [[] for _ in pairs]
    for (number, _, _), sums in zip(pieces, measured, strict=True):
        parts[number].append(sums)
    return [its[0] if len(its) == 1 else added(its) for its in parts]


# --- the report --------------------------------------------------------------------------------------------------------


def _groups(pairs: Sequence[Pair], measured: Sequence[Sums], key: Callable[[Pair], Any]) -> dict[Any, Sums]:
    """Return key -> the sums of the tensors with this key, in order of appearance. The key None is skipped."""
    parts: dict[Any, list[Sums]] = {}
    for pair, sums in zip(pairs, measured, strict=True):
        if (group := key(pair)) is not None:
            parts.setdefault(group, []).append(sums)
    return {group: added(its) for group, its in parts.items()}


def _row(sums: Sums) -> dict[str, Any]:
    """Return the numbers for JSON; those that aren't defined, or that overflowed float64, are None."""
    return {
        "elements": sums.elements,
        "changed": sums.changed,
        "changed_fraction": sums.changed_fraction,
        "max": sums.greatest,
        "mean": sums.mean,
        "relative": sums.relative,
        "cosine": sums.cosine,
        "not_finite_a": sums.not_finite_a,
        "not_finite_b": sums.not_finite_b,
        "overflowed": sums.overflowed,
    }


_DISTANCES = ["0", "1", *(f"{1 << power}-{(2 << power) - 1}" for power in range(1, BUCKETS))]


def _buckets(buckets: Sequence[int]) -> dict[str, int]:
    """Return distance -> number of elements; distances are "0", "1", "2-3", "4-7" ..."""
    return dict(zip(_DISTANCES, buckets, strict=False))
