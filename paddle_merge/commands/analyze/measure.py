"""Measure the task vectors of one tensor, and what each method would keep of them, block by block.

Blocks come from the merge's own pipeline, and the sparsifiers and the sign election are the merge's own, with all weights 1
and seed 0, so the numbers are those of a merge. Sums of blocks are added in order, whichever worker reads them.
"""

from __future__ import annotations

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

# Sparsifier (None: all elements are kept) -> the merge types of the methods with it; without slerp, which drops nothing.
ROUNDS: dict[str | None, list[str]] = {}
for _sparsifier, _merge_type in METHODS.values():
    if _merge_type != "slerp":
        ROUNDS.setdefault(_sparsifier, []).append(_merge_type)

Key = tuple[str | None, int]  # sparsifier, model


@dataclass(frozen=True)
class Measured:
    """The measurements of one tensor.

    models: number of the model -> sums of its task vector. pairs: numbers of both models -> sums of the pair. kept:
    sparsifier and model -> sums of what is kept. summed: sparsifier -> sum |x|, with x the sum of the sparsified task
    vectors. not_finite: the models (None: the base) with NaN or Inf, which were not measured.
    """

    models: dict[int, ModelSums] = field(default_factory=dict)
    pairs: dict[tuple[int, int], PairSums] = field(default_factory=dict)
    kept: dict[Key, KeptSums] = field(default_factory=dict)
    summed: dict[str | None, float] = field(default_factory=dict)
    not_finite: tuple[int | None, ...] = ()


def measure(
    tensor: Compared, sparsifiers: Mapping[str | None, Any], files: Files, progress: Callable[[int], None]
) -> Measured:
    """Measure one tensor in all models. Raises WorkError.

    sparsifiers: by the names in ROUNDS. files: from which is read. progress: is called with the number of bytes read. Models
    in which the tensor has NaN or Inf are left out, since no merge accepts them.
    """
    not_finite: tuple[int | None, ...] = ()
    while tensor.size and tensor.sources and None not in not_finite:
        work = _Work(tensor, sparsifiers, files, progress)
        measured = work.run()
        if not work.not_finite:
            return Measured(measured.models, measured.pairs, measured.kept, measured.summed, not_finite)
        not_finite += work.not_finite
        tensor = tensor.without([model for model in not_finite if model is not None])
        progress = _again(progress)
    return Measured(not_finite=not_finite)


def _again(progress: Callable[[int], None]) -> Callable[[int], None]:
    """Return a callback for bytes that are read a second time: they don't count, but `progress` can still raise."""
    return lambda _: progress(0)


class _Work:
    """The measurement of one tensor: a pass for each sparsifier that needs statistics, then a pass for all sums.

    not_finite: as in Measured, set by `run`.
    """

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
        """Read the tensor and return its measurements. Raises WorkError."""
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
        analysing.add_models(x, base, self._model_counts, self._model_sums, self._largest)
        analysing.add_pairs(x, self._pair_counts[:, :3], self._pair_sums)

    def _sparsify(self, name: str | None, start: int, x: np.ndarray, states: Any) -> None:
        """Add one block to the sums of a sparsifier and its merge types. x: [models, n] task vectors."""
        backend, counts, sums = self._backend, self._kept_counts[name], self._kept_sums[name]
        kept = self._scratch.array("kept", x.size, x.dtype).reshape(x.shape)
        kept[...] = x
        if states is not None:
            for row, state in zip(kept, states, strict=True):
                self._sparsifiers[name].apply(row, start, state, backend)  # in place
        analysing.add_kept(x, kept, counts[:, 0], sums[:, :3])
        if name == "trim":
            analysing.count_both(kept, self._pair_counts[:, 3])
        first = self._scratch.array("first", x.shape[1], x.dtype)
        first[...] = kept[0]  # merge types overwrite this row with their result
        if "linear" in ROUNDS[name]:
            analysing.add_absolute(backend.apply(linear, kept, self._weights), self._summed[name])
        if "ties" in ROUNDS[name]:
            kept[0] = first
            merged = backend.apply(ties, kept, self._weights, False, 1.0, False)
            analysing.add_agreed(x, first, kept, merged, counts[:, 1], sums[:, 3])

    def _result(self) -> Measured:
        columns = self._model_counts.tolist(), self._model_sums.tolist(), self._largest.tolist()
        models = {
            model: ModelSums._make((self._tensor.size, *counts, *sums, *largest))
            for model, counts, sums, largest in zip(self._models, *columns, strict=True)
        }
        return Measured(models, dict(self._pair_results(models)), dict(self._kept_results(models)), self._totals())

    def _pair_results(self, models: Mapping[int, ModelSums]) -> Iterator[tuple[tuple[int, int], PairSums]]:
        trimmed = self._kept_counts["trim"][:, 0].tolist()
        columns = self._pair_counts.tolist(), self._pair_sums.tolist()
        for (j, k), (*counts, kept_both), sums in zip(self._pairs, *columns, strict=True):
            pair = self._models[j], self._models[k]
            a, b = (models[model] for model in pair)
            counted = self._tensor.size, a.changed, b.changed, *counts
            added = a.squares, b.squares, *sums
            yield pair, PairSums._make((*counted, *added, trimmed[j], trimmed[k], kept_both))

    def _kept_results(self, models: Mapping[int, ModelSums]) -> Iterator[tuple[Key, KeptSums]]:
        for name in ROUNDS:
            all_counts, all_sums = self._kept_counts[name].tolist(), self._kept_sums[name].tolist()
            for (model, x), (kept, agreed), sums in zip(models.items(), all_counts, all_sums, strict=True):
                kept_absolute, scaled, error, agreed_absolute = sums
                counted = kept, kept_absolute, agreed, agreed_absolute, scaled, error
                yield (name, model), KeptSums(x.changed, x.absolute, x.squares, *counted)

    def _totals(self) -> dict[str | None, float]:
        return {name: float(summed[0]) for name, summed in self._summed.items()}
