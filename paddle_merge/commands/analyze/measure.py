"""One tensor in a base and several models: what its task vectors are like, and what each method would keep of them.

Blocks come by the merge's own road, and sparsifiers and sign election are the merge's own, with all weights 1 and seed 0: so
the numbers are those of the merge. Sums are of blocks in order, whoever reads them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from ...backends.budget import DEFAULT_BUDGET
from ...backends.kernels import analysing
from ...backends.np_backend import NumpyBackend
from ...backends.scratch import Scratch
from ...checkpoints.files import Files
from ...methods.paddlenlp import METHODS
from ...methods.shared.base import linear
from ...methods.ties import ties
from ...run.pipeline import merge_tensor
from ...run.sources import FileSource
from .sums import KeptSums, ModelSums, PairSums
from .tensors import Compared

# Sparsifier (None: everything is kept) -> the merge types that people use with it, but for slerp, which drops nothing.
ROUNDS: dict[str | None, list[str]] = {}
for _sparsifier, _merge_type in METHODS.values():
    if _merge_type != "slerp":
        ROUNDS.setdefault(_sparsifier, []).append(_merge_type)

Key = tuple[str | None, int]  # sparsifier, model


@dataclass(frozen=True)
class Measured:
    """models, pairs: by their numbers. kept: of each sparsifier and model. summed: sparsifier -> the sum of |x|, x being
    what all models' kept elements add up to. not_finite: the models (None: the base) that hold a NaN or Inf, and were left
    out.
    """

    models: dict[int, ModelSums] = field(default_factory=dict)
    pairs: dict[tuple[int, int], PairSums] = field(default_factory=dict)
    kept: dict[Key, KeptSums] = field(default_factory=dict)
    summed: dict[str | None, float] = field(default_factory=dict)
    not_finite: tuple[int | None, ...] = ()


def measure(tensor: Compared, sparsifiers: Mapping[str | None, Any], progress: Callable[[int], None]) -> Measured:
    """sparsifiers: by the names in ROUNDS. progress hears of bytes read. Raises WorkError.

    Where a model holds a NaN or Inf, which no merge takes, the tensor is measured in the others.
    """
    not_finite: tuple[int | None, ...] = ()
    while tensor.size and tensor.sources and None not in not_finite:
        with contextlib.closing(Files()) as files:
            work = _Work(tensor, sparsifiers, files, progress)
            measured = work.run()
        if not work.not_finite:
            return Measured(measured.models, measured.pairs, measured.kept, measured.summed, not_finite)
        not_finite += work.not_finite
        tensor = tensor.without([model for model in not_finite if model is not None])
        progress = _again(progress)
    return Measured(not_finite=not_finite)


def _again(progress: Callable[[int], None]) -> Callable[[int], None]:
    """What hears of bytes that were read before: it may still want to stop."""
    return lambda _: progress(0)


class _Work:
    """One pass for each sparsifier that measures, then one for all sums. not_finite: as in Measured, once it has run."""

    not_finite: tuple[int | None, ...] = ()

    def __init__(
        self, tensor: Compared, sparsifiers: Mapping[str | None, Any], files: Files, progress: Callable[[int], None]
    ):
        plan = tensor.as_merged()
        self._tensor, self._sparsifiers, self._scratch = tensor, sparsifiers, Scratch()
        self._backend = NumpyBackend(plan.compute)
        source = FileSource(plan, self._backend, files, keep=DEFAULT_BUDGET.resident)
        self._pipeline = merge_tensor(plan, source, self._backend, progress=progress)
        models = self._models = list(tensor.sources)
        self._pairs = list(combinations(range(len(models)), 2))
        self._weights = self._backend.array([1.0] * len(models))
        self._model_counts, self._model_sums = np.zeros((len(models), 1), np.int64), np.zeros((len(models), 4))
        self._largest = np.zeros((len(models), 1))
        self._pair_counts, self._pair_sums = np.zeros((len(self._pairs), 4), np.int64), np.zeros((len(self._pairs), 2))
        self._kept_counts = {name: np.zeros((len(models), 2), np.int64) for name in ROUNDS}
        self._kept_sums = {name: np.zeros((len(models), 4)) for name in ROUNDS}
        self._summed = {name: np.zeros(1) for name in ROUNDS}

    def run(self) -> Measured:
        states = {
            name: one.prepare(self._pipeline, self._backend) for name, one in self._sparsifiers.items() if one is not None
        }
        for start, x, base in self._pipeline.blocks():
            self._measure(x, base)
            for name in ROUNDS:
                self._sparsify(name, start, x, states.get(name))
        everything = (*self._models, None)
        self.not_finite = tuple(everything[source] for source in self._pipeline.not_finite)
        return self._result()

    def _measure(self, x: np.ndarray, base: np.ndarray) -> None:
        for k, row in enumerate(x):
            analysing.add_model(row, base, self._model_counts[k], self._model_sums[k], self._largest[k])
        for p, (j, k) in enumerate(self._pairs):
            analysing.add_pair(x[j], x[k], self._pair_counts[p], self._pair_sums[p])

    def _sparsify(self, name: str | None, start: int, x: np.ndarray, states: Any) -> None:
        """Of one block x, a row per model: what is kept, and what the merge types then make of it."""
        backend, counts, sums = self._backend, self._kept_counts[name], self._kept_sums[name]
        kept = self._scratch.array("kept", x.size, x.dtype).reshape(x.shape)
        kept[...] = x
        for k, row in enumerate(kept):
            if states is not None:
                kept[k] = self._sparsifiers[name].apply(row, start, states[k], backend)
            analysing.add_kept(x[k], kept[k], counts[k, :1], sums[k, :3])
        if name == "trim":
            for p, (j, k) in enumerate(self._pairs):
                self._pair_counts[p, 3] += analysing.count_both(kept[j], kept[k])
        first = self._scratch.array("first", x.shape[1], x.dtype)
        first[...] = kept[0]  # where merge types leave what they make
        if "linear" in ROUNDS[name]:
            analysing.add_absolute(backend.apply(linear, kept, self._weights), self._summed[name])
        if "ties" in ROUNDS[name]:
            kept[0] = first
            merged = backend.apply(ties, kept, self._weights, False, 1.0, False)
            for k in range(len(x)):
                analysing.add_agreed(x[k], kept[k] if k else first, merged, counts[k, 1:], sums[k, 3:])

    def _result(self) -> Measured:
        size, models = self._tensor.size, {}
        for k, model in enumerate(self._models):
            absolute, squares, along, base_squares = map(float, self._model_sums[k])
            changed, largest = int(self._model_counts[k, 0]), float(self._largest[k, 0])
            models[model] = ModelSums(
                elements=size,
                changed=changed,
                absolute=absolute,
                squares=squares,
                along_base=along,
                base_squares=base_squares,
                largest=largest,
            )
        return Measured(models, dict(self._pair_results(models)), dict(self._kept_results(models)), self._totals())

    def _pair_results(self, models: Mapping[int, ModelSums]) -> Iterator[tuple[tuple[int, int], PairSums]]:
        trimmed = self._kept_counts["trim"][:, 0]
        for p, (j, k) in enumerate(self._pairs):
            a, b = models[self._models[j]], models[self._models[k]]
            both, conflicts, different, kept_both = map(int, self._pair_counts[p])
            products, sizes = map(float, self._pair_sums[p])
            counts = (self._tensor.size, a.changed, b.changed, both, conflicts, different)
            sums = (a.squares, b.squares, products, sizes)
            pair = self._models[j], self._models[k]
            yield pair, PairSums(*counts, *sums, int(trimmed[j]), int(trimmed[k]), kept_both)

    def _kept_results(self, models: Mapping[int, ModelSums]) -> Iterator[tuple[Key, KeptSums]]:
        for name in ROUNDS:
            for k, model in enumerate(self._models):
                x = models[model]
                kept, agreed = map(int, self._kept_counts[name][k])
                kept_absolute, scaled, error, agreed_absolute = map(float, self._kept_sums[name][k])
                counted = KeptSums(
                    changed=x.changed,
                    absolute=x.absolute,
                    squares=x.squares,
                    kept=kept,
                    kept_absolute=kept_absolute,
                    agreed=agreed,
                    agreed_absolute=agreed_absolute,
                    scaled=scaled,
                    error=error,
                )
                yield (name, model), counted

    def _totals(self) -> dict[str | None, float]:
        return {name: float(total[0]) for name, total in self._summed.items()}
