"""Measure the task vectors of tensors, and what each method would keep of them, block by block.

Blocks come from the merge's own pipeline, and the sparsifiers are the merge's own, with all weights 1 and seed 0, so the
numbers are those of a merge. Sums of blocks are added in order, whichever worker reads them. Small tensors of the same size
are measured together (group.py): of a few hundred elements each, what a call takes would count most.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import field
from itertools import combinations
from typing import Any

import numpy as np

from ...backends.budget import DEFAULT_BUDGET
from ...backends.kernels import analysing
from ...backends.np_backend import NumpyBackend
from ...backends.scratch import Scratch
from ...checkpoints.files import Files
from ...dtypes import compute_dtype
from ...methods.paddlenlp import METHODS
from ...methods.shared.base import Tensor
from ...plan.tensor_plan import Piece
from ...records import record
from ...run.pipeline import Pipeline
from ...run.sources import FileSource
from .group import load_group
from .sums import ModelSums, PairSums
from .tensors import Compared

# Sparsifier (None: all elements are kept) -> the merge types of the methods with it; without slerp, which drops nothing.
ROUNDS: dict[str | None, list[str]] = {}
for _sparsifier, _merge_type in METHODS.values():
    if _merge_type != "slerp":
        ROUNDS.setdefault(_sparsifier, []).append(_merge_type)

_PLACES = {name: place for place, name in enumerate(ROUNDS)}


@record(frozen=True)
class Measured:
    """The measurements of one tensor.

    models: number of the model -> sums of its task vector. pairs: numbers of both models -> sums of the pair. kept_counts,
    kept_sums: what is kept (sparsifiers, models, ...), of ROUNDS and `models` in order, with the columns of
    analysing.add_sparsified. summed: sparsifier -> sum |x|, with x the sum of the sparsified task vectors. not_finite: the
    models (None: the base) with NaN or Inf, which were not measured.
    """

    models: dict[int, ModelSums] = field(default_factory=dict)
    pairs: dict[tuple[int, int], PairSums] = field(default_factory=dict)
    kept_counts: np.ndarray | None = None
    kept_sums: np.ndarray | None = None
    summed: dict[str | None, float] = field(default_factory=dict)
    not_finite: tuple[int | None, ...] = ()


class Measuring:
    """Measures tensors, one group after the other.

    sparsifiers: by the names in ROUNDS. files: from which is read. progress: is called with the number of bytes read.
    """

    def __init__(self, sparsifiers: Mapping[str | None, Any], files: Files, progress: Callable[[int], None]):
        self._sparsifiers, self._files, self._progress = sparsifiers, files, progress
        self._backends, self._scratch = dict[str, NumpyBackend](), Scratch()

    def measure(self, tensors: Sequence[Compared]) -> list[Measured]:
        """Measure one tensor in all models, or several that can be measured together (group.groups). Raises WorkError.

        Models in which a tensor has NaN or Inf are left out for it, since no merge accepts them.
        """
        progress = self._progress
        if len(tensors) > 1:
            if (measured := self._together(tensors)) is not None:
                return measured
            progress = self._again
        return [self._alone(tensor, progress) for tensor in tensors]

    def _alone(self, tensor: Compared, progress: Callable[[int], None]) -> Measured:
        not_finite = tuple[int | None, ...]()
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

    def _backend(self, compute: str) -> NumpyBackend:
        if compute not in self._backends:
            self._backends[compute] = NumpyBackend(compute)
        return self._backends[compute]

    def _measured(self, tensor: Compared, progress: Callable[[int], None]) -> tuple[Measured, tuple[int | None, ...]]:
        """Return the measurements of a tensor, and the models (None: the base) in which it has NaN or Inf.

        There is a pass for each sparsifier that needs statistics, then a pass for all sums.
        """
        plan = tensor.as_merged()
        backend = self._backend(plan.compute)
        keep, scratch = DEFAULT_BUDGET.resident, self._scratch
        source = FileSource(plan, backend, self._files, keep=keep, scratch=scratch, fingerprints=False)
        pipeline = Pipeline(plan, source, backend, Piece(0, 0, plan.size), progress)
        states = self._states(pipeline, backend)
        models = list(tensor.sources)
        sums = _Sums(models, 1, backend.dtype)
        for start, x, base in pipeline.blocks():
            self._add(sums, start, x, base, states, backend)
        everything = (*models, None)
        (result,) = sums.results(tensor.size)
        return result, tuple(everything[source] for source in pipeline.not_finite)

    def _together(self, tensors: Sequence[Compared]) -> list[Measured] | None:
        """Return the measurements of a group; None: some tensor has a NaN or Inf."""
        backend, size = self._backend(compute_dtype(tensors[0].dtypes)), tensors[0].size
        loaded = load_group(tensors, backend, self._files, self._scratch, self._progress)
        if loaded is None:
            return None
        group, base = loaded
        sums = _Sums(list(tensors[0].sources), len(tensors), backend.dtype)
        self._add(sums, 0, group.rows, base, self._states(group, backend), backend)
        return sums.results(size)

    def _states(self, tensor: Tensor, backend: NumpyBackend) -> dict[str | None, Sequence[Any]]:
        return {name: one.prepare(tensor, backend) for name, one in self._sparsifiers.items() if one is not None}

    def _add(
        self,
        sums: _Sums,
        start: int,
        x: np.ndarray,
        base: np.ndarray,
        states: Mapping[str | None, Sequence[Any]],
        backend: NumpyBackend,
    ) -> None:
        """Add a block x (models * tensors, n) of task vectors, the base's (tensors * n,), and what sparsifiers make of x."""
        shape = sums.models, sums.tensors, x.shape[1]
        sums.add_changes(x.reshape(shape), base.reshape(shape[1:]))
        kept = self._scratch.array("kept", x.size, x.dtype).reshape(x.shape)
        for name in ROUNDS:
            kept[...] = x
            for row, state in zip(kept, states.get(name, ()), strict=False):  # none: all is kept
                self._sparsifiers[name].apply(row, start, state, backend)  # in place
            sums.add_sparsified(name, x.reshape(shape), kept.reshape(shape))


class _Sums:
    """The counts and sums of tensors of one size. numbers: of their models. dtype: of the blocks."""

    def __init__(self, numbers: list[int], tensors: int, dtype: Any):
        self._numbers, self._pairs = numbers, list(combinations(range(len(numbers)), 2))
        self.models, self.tensors = len(numbers), tensors
        models, pairs, rounds = len(numbers), len(self._pairs), len(ROUNDS)
        self._model_counts, self._model_sums = np.zeros((tensors, models), np.int64), np.zeros((tensors, models, 4))
        self._largest = np.zeros((tensors, models))
        self._pair_counts, self._pair_sums = np.zeros((tensors, pairs, 3), np.int64), np.zeros((tensors, pairs, 2))
        self._both = np.zeros((tensors, pairs), np.int64)  # of the trimmed task vectors
        self._kept_counts = np.zeros((rounds, tensors, models, 2), np.int64)
        self._kept_sums, self._summed = np.zeros((rounds, tensors, models, 4)), np.zeros((rounds, tensors, 1))
        self._work = np.empty((3, analysing.LANES), dtype)
        self._rounding = self._work.dtype.type((models + 1) * np.finfo(dtype).eps)

    def add_changes(self, x: np.ndarray, base: np.ndarray) -> None:
        """Add a block x (models, tensors, n) of task vectors, and the base's (tensors, n)."""
        sums = self._model_sums, self._largest, self._pair_counts, self._pair_sums
        analysing.add_changes(x, base, self._model_counts, *sums)

    def add_sparsified(self, name: str | None, x: np.ndarray, kept: np.ndarray) -> None:
        """Add what a sparsifier made of the block, and what its merge types make of that."""
        place = _PLACES[name]
        counts, sums, summed = self._kept_counts[place], self._kept_sums[place], self._summed[place]
        both = self._both if name == "trim" else self._both[:, :0]
        analysing.add_sparsified(x, kept, self._rounding, self._work, counts, sums, summed, both)

    def results(self, size: int) -> list[Measured]:
        """Return the measurements of each tensor, of `size` elements, once all blocks were added."""
        columns = self._model_counts.tolist(), self._model_sums.tolist(), self._largest.tolist()
        kept = self._kept_counts.swapaxes(0, 1), self._kept_sums.swapaxes(0, 1)
        trimmed = self._kept_counts[_PLACES["trim"], :, :, 0].tolist()
        pairs = self._pair_counts.tolist(), self._pair_sums.tolist(), self._both.tolist(), trimmed
        summed = self._summed[:, :, 0].T.tolist()
        found = []
        for of_models, of_pairs, of_kept, sums in zip(
            zip(*columns, strict=True), zip(*pairs, strict=True), zip(*kept, strict=True), summed, strict=True
        ):
            models = {
                model: ModelSums._make((size, changed, *its, largest))
                for model, changed, its, largest in zip(self._numbers, *of_models, strict=True)
            }
            found.append(
                Measured(
                    models,
                    dict(self._pair_results(size, list(models.items()), *of_pairs)),
                    *of_kept,
                    dict(zip(ROUNDS, sums, strict=True)),
                )
            )
        return found

    def _pair_results(
        self, size: int, models: list[tuple[int, ModelSums]], counts: Any, sums: Any, kept_both: Any, kept: Any
    ) -> Iterator[tuple[tuple[int, int], PairSums]]:
        for (j, k), counted, added, both in zip(self._pairs, counts, sums, kept_both, strict=True):
            (one, a), (other, b) = models[j], models[k]
            counts_of, sums_of = (size, a.changed, b.changed, *counted), (a.squares, b.squares, *added)
            yield (one, other), PairSums._make((*counts_of, *sums_of, kept[j], kept[k], both))
