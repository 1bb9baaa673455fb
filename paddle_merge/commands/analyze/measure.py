"""Measure the task vectors of one tensor, and what each method would keep of them, block by block.

Blocks come from the merge's own pipeline, and the sparsifiers and the sign election are the merge's own, with all weights 1
and seed 0, so the numbers are those of a merge. Sums of blocks are added in order, whichever worker reads them.
"""

from __future__ import annotations

import dataclasses
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
from ...plan.tensor_plan import Piece
from ...run.pipeline import Pipeline
from ...run.sources import FileSource
from .sums import KeptSums, ModelSums, PairSums
from .tensors import Compared

# Sparsifier (None: all elements are kept) -> the merge types of the methods with it; without slerp, which drops nothing.
ROUNDS: dict[str | None, list[str]] = {}
for _sparsifier, _merge_type in METHODS.values():
    if _merge_type != "slerp":
        ROUNDS.setdefault(_sparsifier, []).append(_merge_type)

_PLACES = {name: place for place, name in enumerate(ROUNDS)}

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


class Measuring:
    """Measures tensors, one after the other.

    sparsifiers: by the names in ROUNDS. files: from which is read. progress: is called with the number of bytes read.
    """

    def __init__(self, sparsifiers: Mapping[str | None, Any], files: Files, progress: Callable[[int], None]):
        self._sparsifiers, self._files, self._progress = sparsifiers, files, progress
        self._backends, self._scratch = dict[str, NumpyBackend](), Scratch()

    def measure(self, tensor: Compared) -> Measured:
        """Measure one tensor in all models. Raises WorkError.

        Models in which the tensor has NaN or Inf are left out, since no merge accepts them.
        """
        progress, not_finite = self._progress, tuple[int | None, ...]()
        while tensor.size and tensor.sources and None not in not_finite:
            measured, found = self._measured(tensor, progress)
            if not found:
                return dataclasses.replace(measured, not_finite=not_finite) if not_finite else measured
            not_finite += found
            tensor = tensor.without([model for model in not_finite if model is not None])
            progress = self._again
        return Measured(not_finite=not_finite)

    def _again(self, _: int) -> None:
        """Take bytes that are read a second time: they don't count, but `progress` can still raise."""
        self._progress(0)

    def _measured(self, tensor: Compared, progress: Callable[[int], None]) -> tuple[Measured, tuple[int | None, ...]]:
        """Return the measurements of a tensor, and the models (None: the base) in which it has NaN or Inf.

        There is a pass for each sparsifier that needs statistics, then a pass for all sums.
        """
        plan = tensor.as_merged()
        if plan.compute not in self._backends:
            self._backends[plan.compute] = NumpyBackend(plan.compute)
        backend = self._backends[plan.compute]
        keep, scratch = DEFAULT_BUDGET.resident, self._scratch
        source = FileSource(plan, backend, self._files, keep=keep, scratch=scratch, fingerprints=False)
        pipeline = Pipeline(plan, source, backend, Piece(0, 0, plan.size), progress)
        states = {name: one.prepare(pipeline, backend) for name, one in self._sparsifiers.items() if one is not None}
        models = list(tensor.sources)
        sums = _Sums(models, backend.dtype)
        for start, x, base in pipeline.blocks():
            sums.add_changes(x, base)
            for name in ROUNDS:
                sums.add_sparsified(name, x, self._sparsified(name, start, x, states.get(name), backend), self._scratch)
        everything = (*models, None)
        return sums.result(tensor.size), tuple(everything[source] for source in pipeline.not_finite)

    def _sparsified(self, name: str | None, start: int, x: np.ndarray, states: Any, backend: NumpyBackend) -> np.ndarray:
        """Return what a sparsifier makes of a block x (models, n). The next call overwrites it."""
        kept = self._scratch.array("kept", x.size, x.dtype).reshape(x.shape)
        kept[...] = x
        if states is not None:
            for row, state in zip(kept, states, strict=True):
                self._sparsifiers[name].apply(row, start, state, backend)  # in place
        return kept


class _Sums:
    """The counts and sums of one tensor. models: their numbers. dtype: of the blocks."""

    def __init__(self, models: list[int], dtype: Any):
        self._models, self._pairs = models, list(combinations(range(len(models)), 2))
        self._weights = np.ones(len(models), dtype)
        count, pairs, rounds = len(models), len(self._pairs), len(ROUNDS)
        self._model_counts, self._model_sums = np.zeros((count, 1), np.int64), np.zeros((count, 4))
        self._largest = np.zeros((count, 1))
        self._pair_counts, self._pair_sums = np.zeros((pairs, 3), np.int64), np.zeros((pairs, 2))
        self._both = np.zeros(pairs, np.int64)  # of the trimmed task vectors
        self._kept_counts, self._kept_sums = np.zeros((rounds, count, 2), np.int64), np.zeros((rounds, count, 4))
        self._summed = np.zeros((rounds, 1))

    def add_changes(self, x: np.ndarray, base: np.ndarray) -> None:
        """Add a block x (models, n) of task vectors, and the base's."""
        sums = self._model_sums, self._largest, self._pair_counts, self._pair_sums
        analysing.add_changes(x, base, self._model_counts, *sums)

    def add_sparsified(self, name: str | None, x: np.ndarray, kept: np.ndarray, scratch: Scratch) -> None:
        """Add what a sparsifier made of the block, and what its merge types make of that. Overwrites `kept`."""
        place, merge_types = _PLACES[name], ROUNDS[name]
        first = scratch.array("first", x.shape[1], x.dtype)
        analysing.add_sparsified(
            x,
            kept,
            first,
            self._weights,
            "linear" in merge_types,
            "ties" in merge_types,
            self._kept_counts[place],
            self._kept_sums[place],
            self._both if name == "trim" else self._both[:0],
            self._summed[place],
        )

    def result(self, size: int) -> Measured:
        """Return the measurements of a tensor of `size` elements, once all its blocks were added."""
        columns = self._model_counts.tolist(), self._model_sums.tolist(), self._largest.tolist()
        models = {
            model: ModelSums(size, *counts, *sums, *largest)
            for model, counts, sums, largest in zip(self._models, *columns, strict=True)
        }
        kept = self._kept_counts.tolist(), self._kept_sums.tolist()
        return Measured(
            models,
            dict(self._pair_results(size, models)),
            dict(self._kept_results(models, *kept)),
            dict(zip(ROUNDS, self._summed[:, 0].tolist(), strict=True)),
        )

    def _pair_results(self, size: int, models: Mapping[int, ModelSums]) -> Iterator[tuple[tuple[int, int], PairSums]]:
        trimmed = self._kept_counts[_PLACES["trim"], :, 0].tolist()
        columns = self._pair_counts.tolist(), self._pair_sums.tolist(), self._both.tolist()
        for (j, k), counts, sums, both in zip(self._pairs, *columns, strict=True):
            pair = self._models[j], self._models[k]
            a, b = models[pair[0]], models[pair[1]]
            counted, added = (size, a.changed, b.changed, *counts), (a.squares, b.squares, *sums)
            yield pair, PairSums._make((*counted, *added, trimmed[j], trimmed[k], both))

    def _kept_results(
        self, models: Mapping[int, ModelSums], all_counts: Any, all_sums: Any
    ) -> Iterator[tuple[Key, KeptSums]]:
        for name, counts_of, sums_of in zip(ROUNDS, all_counts, all_sums, strict=True):
            for (model, x), (kept, agreed), sums in zip(models.items(), counts_of, sums_of, strict=True):
                kept_absolute, scaled, error, agreed_absolute = sums
                yield (
                    (name, model),
                    KeptSums(x.changed, x.absolute, x.squares, kept, kept_absolute, agreed, agreed_absolute, scaled, error),
                )
