"""What the numbers of two checkpoints differ by: headers -> pairs of tensors -> workers -> a report."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

from .. import __version__
from ..detect import read_config
from ..dtypes import DTYPES
from ..errors import CheckpointError
from ..lora.fold import adapt
from ..names import layer_of, word_of
from ..quantised import signs
from ..readers import Checkpoint
from ..readers.adapters import open_model
from .headers import in_one_layout
from .measure import Pair, Sums, measure

log = logging.getLogger("paddle_merge")


@dataclass(frozen=True)
class Models:
    """Both, adapters folded in, in one layout (None: it can't be told). notes: sentences on how that came about."""

    a: Checkpoint
    b: Checkpoint
    layout: str | None
    notes: list[str]

    @property
    def has_layers(self) -> bool:
        return any(layer_of(name) for name in self.a.tensors if name in self.b.tensors)


def open_models(specs: tuple[str, str], layouts: tuple[str | None, str | None], prefix: str) -> Models:
    """Read the headers. Raises CheckpointError listing everything wrong with either."""
    opened, problems = [], []
    for spec in specs:
        try:
            opened.append(open_model(spec, prefix))
        except CheckpointError as error:
            problems += error.problems
    if problems:
        raise CheckpointError(list(dict.fromkeys(problems)))
    checkpoints, adapters = [checkpoint for checkpoint, _ in opened], [held for _, held in opened]
    fallback = next((config for one in checkpoints if (config := read_config(one.folder))), {})
    viewed, layout, notes = in_one_layout(checkpoints, layouts, prefix)
    (a, b), folded, noticed = adapt(viewed, adapters, specs, layout, fallback)
    for checkpoint in checkpoints:
        if found := signs(checkpoint, read_config(checkpoint.folder)):
            notes.append(f"{checkpoint.path} is quantised ({'; '.join(found)}): its codes are compared as plain numbers")
    return Models(a, b, layout, [*notes, *folded, *noticed])


def compare(models: Models, n_process: int, progress: bool | None = None) -> dict[str, Any]:
    """The report, as `diff --json` prints it. progress: whether to show a progress bar; None: if standard error is a
    terminal. Raises WorkError."""
    a, b = models.a.tensors, models.b.tensors
    both = [name for name in a if name in b]
    pairs = [Pair(a[name], b[name]) for name in both if a[name].shape == b[name].shape]
    measured = _measure(pairs, n_process, progress)
    only_in_a, only_in_b = [name for name in a if name not in b], [name for name in b if name not in a]
    shapes = [name for name in both if a[name].shape != b[name].shape]
    total = _added(measured)
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
    """What each pair differs by. Threads do: nearly all time goes to loops and reads that don't hold Python's lock."""
    from tqdm import tqdm

    pieces = [(number, start, stop) for number, pair in enumerate(pairs) for start, stop in pair.pieces()]
    found: list[list[Sums | None]] = [[] for _ in pairs]
    places = []
    for number, _, _ in pieces:
        places.append(len(found[number]))
        found[number].append(None)
    lock, stopped = threading.Lock(), threading.Event()
    disable = not log.isEnabledFor(logging.INFO) or (not sys.stderr.isatty() if progress is None else not progress)
    total = sum(pair.size * (pair.a.dtype.itemsize + pair.b.dtype.itemsize) for pair in pairs)

    def advance(nbytes: int) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        if not disable:
            with lock:
                bar.update(nbytes)

    def work(which: int) -> None:
        number, start, stop = pieces[which]
        found[number][places[which]] = measure(pairs[number], start, stop, advance)

    largest_first = sorted(range(len(pieces)), key=lambda which: pieces[which][1] - pieces[which][2])
    with tqdm(total=total, unit="B", unit_scale=True, desc="comparing", disable=disable) as bar:
        pool = ThreadPoolExecutor(max(1, min(n_process, len(pieces))))
        try:
            for future in as_completed([pool.submit(work, which) for which in largest_first]):
                future.result()
        except BaseException:
            stopped.set()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
    return [_added([sums for sums in of_pair if sums is not None]) for of_pair in found]


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# --- the report --------------------------------------------------------------------------------------------------------


def _added(parts: Iterable[Sums]) -> Sums:
    return sum(parts, Sums())


def _groups(pairs: Sequence[Pair], measured: Sequence[Sums], key: Callable[[Pair], Any]) -> dict[Any, Sums]:
    """Sums of the tensors that have a key in common, in order of appearance; those whose key is None are in none."""
    found: dict[Any, Sums] = {}
    for pair, sums in zip(pairs, measured, strict=True):
        if (group := key(pair)) is not None:
            found[group] = found.get(group, Sums()) + sums
    return found


def _row(sums: Sums) -> dict[str, Any]:
    """JSON: numbers that don't exist, or leave float64 (overflowed), are None."""
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


def _buckets(buckets: Sequence[int]) -> dict[str, int]:
    """ "0", "1", "2-3", "4-7" ... -> how many elements."""
    names = ["0", "1", *(f"{1 << power}-{(2 << power) - 1}" for power in range(1, len(buckets) - 1))]
    return dict(zip(names, buckets, strict=False))
