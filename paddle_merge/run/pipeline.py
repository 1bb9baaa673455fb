"""Merge one tensor block by block: read, widen, subtract the base, sparsify, merge, add the base, round.

A block of all models stays in the second-level cache (on a device, in its memory) while every step runs over it, so a tensor
of any size is merged in the same few megabytes.

Before: a Source (sources.py) gives the elements of the inputs. Here: the steps, as TensorPlan.resolved says; the
formulas are in methods/, and backends/ compute them. After: worker.py writes the merged blocks to the output's file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from ..backends.backend import Backend
from ..backends.masks import Key, mask_key
from ..dtypes import DType
from ..plan.tensor_plan import Piece, TensorPlan
from ..records import record
from .common_bits import CommonBits

SAMPLE_WIDTH = 16  # neighbouring elements sampled together


class Source(Protocol):
    """Gives the elements of one tensor's inputs: the models in order, then the base (TensorPlan.inputs).

    dtypes: of each input's elements. Adapted and aligned tensors are given in the dtype that they are merged in, all
    others in the dtype that they are stored in.
    """

    dtypes: Sequence[DType]

    def read(self, number: int, start: int, count: int) -> Any:
        """Return `count` elements of input `number` from `start` on, (count,). The next call may overwrite them."""

    def sample(self, number: int, clusters: int, step: int, width: int) -> Any:
        """Return the first `width` of every `step` elements, `clusters` times from the tensor's beginning: (clusters *
        width,)."""


def merge_tensor(
    tensor: TensorPlan,
    source: Source,
    backend: Backend,
    *,
    piece: Piece | None = None,
    progress: Callable[[int], None] = lambda _: None,
    measured: Measured | None = None,
) -> Pipeline:
    """Begin to merge one tensor: measure what its method needs. Pipeline.merged() then gives the merged blocks.

    tensor: what to merge, and how. source: gives its inputs' elements. backend: computes, between `with backend.at_work()`.
    piece: the elements to merge; None: all. A tensor whose method measures must be merged whole, unless `measured` is given.
    progress: hears of the bytes that are read for the first time, and of those merged.
    measured: what another pipeline of this tensor measured, on all of it; None: measure.
    """
    pipeline = Pipeline(tensor, source, backend, piece or Piece(0, 0, tensor.size), progress)
    pipeline.measured = measured or pipeline.measure()
    return pipeline


@record(frozen=True)
class Measured:
    """What was measured of a tensor. states: of each model, for the sparsifier; state: for the merger."""

    states: Sequence[Any]
    state: Any


class Pipeline:
    """A piece of one tensor in all models, as methods see it (methods.shared.base.Tensor), and as it is merged.

    not_finite: the inputs, by their places in Recipe.titles, in which a NaN or Inf was met that not all of them have.
    all_finite: whether no NaN or Inf was met at all, not even one that all of them have.
    overflowed: whether finite input led to a number that the output's dtype can't hold. Both are known when all blocks are
    merged.
    """

    first = 0  # tensor.sources[0] is model 0

    def __init__(self, tensor: TensorPlan, source: Source, backend: Backend, piece: Piece, progress: Callable[[int], None]):
        self.name, self.shape, self.size = tensor.masked_as, tensor.shape, tensor.size
        self.models, self.transposed = len(tensor.sources), tensor.transposed
        self.narrow = all(entry.dtype.itemsize < 8 for entry in tensor.inputs)
        self._tensor, self._piece, self._resolved = tensor, piece, tensor.resolved
        self._source, self._backend, self._progress = source, backend, progress
        self._dtypes = source.dtypes
        self._based = tensor.base is not None
        self._bad: list[list[Any]] = []  # of each block: a bool per source, maybe still on the device
        self._bad_out: list[Any] = []
        self.measured = Measured((), None)
        self._counted = False  # whether the bytes that are read have been reported as progress
        self._whole: tuple[int, Any, Any] | None = None  # the only block, where no one overwrites it
        self._met_common = False  # whether there was a block in which every input holds a NaN or Inf
        self._common: CommonBits | None = None  # of the last block, if every input holds a NaN or Inf there

    @property
    def not_finite(self) -> tuple[int, ...]:
        numbers = enumerate(self._tensor.numbers)
        return tuple(number for place, number in numbers if any(bad[place] for bad in self._bad))

    @property
    def all_finite(self) -> bool:
        return not self._met_common and not self.not_finite

    @property
    def overflowed(self) -> bool:
        return any(self._bad_out) and not self.not_finite

    # --- what methods may ask for while they measure

    def mask_key(self, model: int) -> Key:
        return mask_key(self._tensor.seed, self.first + model, self.name)

    def deltas(self) -> Iterator[tuple[int, Any]]:
        for start, x, _ in self.blocks(again=True):
            yield start, x

    def sparsified(self) -> Iterator[tuple[int, Any]]:
        for start, x, _ in self.blocks(again=True):
            yield start, self._sparsify(start, x)

    def sample(self, count: int) -> np.ndarray:
        clusters = max(1, min(count, self.size) // SAMPLE_WIDTH)
        step = self.size // clusters
        width = min(SAMPLE_WIDTH, step)
        raws = [self._source.sample(number, clusters, step, width) for number in range(len(self._dtypes))]
        x, _, _ = self._backend.load(raws, self._dtypes, self._based)
        return np.stack([self._backend.fetch(row)() for row in x]).reshape(self.models, clusters, width)

    # --- the merge

    def measure(self, states: Sequence[Any] | None = None) -> Measured:
        """Return what the method needs to know of the tensor.

        states: of each model, for the sparsifier, if they are known; None: measure them, too.
        """
        if states is None:
            sparsifier = self._resolved.sparsifier
            states = sparsifier.prepare(self, self._backend) if sparsifier is not None else ()
        self.measured = Measured(states, None)  # with which `sparsified` works, if the merger measures
        return Measured(states, self._resolved.merger.prepare(self, self._backend))

    def merged(self, first: int | None = None, stop: int | None = None) -> Iterator[tuple[Any, int]]:
        """Yield (elements in the dtype TensorPlan.rounded, where the backend holds them; index of the first) block by block,
        of the piece or of its elements first..stop."""
        resolved, backend = self._resolved, self._backend
        for start, x, base in self.blocks(first, stop):
            merged = resolved.merger.apply(self._sparsify(start, x), start, self.measured.state, backend)
            if base is not None:
                merged = backend.add_scaled(base, merged, resolved.scale)
            stored, bad = backend.store(merged, self._tensor.rounded)
            if self._common is not None:
                raw, bad = self._common.restored(backend.fetch(stored)(), self._tensor.rounded)
                stored = backend.put(raw, self._tensor.rounded)
            self._bad_out.append(bad)
            yield stored, start
            self._progress(len(stored) * self._tensor.dtype.itemsize)

    def blocks(
        self, first: int | None = None, stop: int | None = None, *, again: bool = False
    ) -> Iterator[tuple[int, Any, Any]]:
        """Yield (start, x, base or None) block by block, of the piece or of its elements first..stop.

        x: a row per model, of task vectors, or of weights if there is no base. The next block may overwrite it. again:
            whether the blocks will be asked for once more.
        """
        first = self._piece.start if first is None else first
        stop = self._piece.stop if stop is None else stop
        block = self._backend.block(self.models)
        if self._whole is not None:
            start, x, base = self._whole
            yield start, x.copy() if self._backend.in_place else x, base
            return
        read, load, numbers = self._source.read, self._backend.load, range(len(self._dtypes))
        itemsizes = sum(dtype.itemsize for dtype in self._dtypes)
        for start in range(first, stop, block):
            count = min(block, stop - start)
            raws = [read(number, start, count) for number in numbers]
            x, base, bad = load(raws, self._dtypes, self._based)
            self._common = None
            if all(bad):
                self._met_common = True
                self._common = CommonBits(raws, self._dtypes, self._tensor.compute)
                x, base, bad = load(self._common.without, self._dtypes, self._based)
            if not self._counted:
                self._progress(count * itemsizes)
                self._bad.append(bad)
            if count == self._piece.stop - self._piece.start:
                if not self._backend.in_place:
                    self._whole = start, x, base
                elif again:  # to copy the rows takes less than to load them
                    self._whole = start, x.copy(), None if base is None else base.copy()
            yield start, x, base
        self._counted = True

    def _sparsify(self, start: int, x: Any) -> Any:
        sparsifier, backend = self._resolved.sparsifier, self._backend
        if sparsifier is None:
            return x
        return backend.replace(
            x, [sparsifier.apply(row, start, state, backend) for row, state in zip(x, self.measured.states, strict=True)]
        )
