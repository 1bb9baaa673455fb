"""Predict how long a merge takes on this machine: a few pieces are merged, their results are discarded, and the times are
extrapolated.
"""

from __future__ import annotations

import dataclasses
import math
import os
import random
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import accumulate
from typing import IO, Any

import numpy as np
import xxhash
from threadpoolctl import threadpool_limits

from ..backends.machine import cores
from ..backends.scratch import Scratch
from ..checkpoints.files import Files
from ..checkpoints.fingerprint import BLOCK
from ..checkpoints.tensors import TensorEntry
from ..conversion.mixture.entry import DrawnEntry
from ..conversion.vocabulary.entry import CompletedEntry, Pursuit, together
from ..errors import WorkError
from ..methods.shared.whole_matrix import is_matrix
from ..plan.plan import Plan
from ..plan.tensor_plan import STORED, Piece, TensorPlan
from ..records import record
from .disk_speed import WRITTEN, flush_rate, nameless_file, page_cache
from .encoder import Encoder
from .pipeline import Source, merge_tensor
from .pool import MOST_PIECES
from .sources import FileSource
from .together import JoinedSource, Pieces, groups, joined, suits
from .worker import Backends

SECONDS = 1.2  # for merging pieces; reading from the disk and flushing to it come on top
PIECE = 24 << 20  # bytes of input merged at a time
_PYTHON = 0.35  # seconds that Python takes to start, import what every command needs, and end


@record(frozen=True)
class Forecast:
    """The predicted duration of a merge, in seconds.

    starting: until the first piece. reading, computing, writing: what all workers together take for each, divided by the
    number that work at a time. flushing: waiting for the disk at the end.
    cached: the share of the inputs in the page cache; None if that isn't known.
    notes: sentences on what isn't counted, or was unusual.
    """

    starting: float
    reading: float
    computing: float
    writing: float
    flushing: float
    cached: float | None
    notes: tuple[str, ...]

    @property
    def seconds(self) -> float:
        return self.starting + self.reading + self.computing + self.writing + self.flushing


def forecast(plan: Plan, output: str, planning: float) -> Forecast:
    """Predict the duration of a merge. output: the folder to be written. planning: seconds that making the plan took.

    Raises WorkError as the merge itself would.
    """
    notes: list[str] = []
    random_places = random.Random(0)
    with closing(Files(panel=plan.engine.budget.panel)) as files, nameless_file(output, notes) as written:
        bench = _Bench(plan, files, written)
        loading = bench.load()
        if loading > 3:
            notes.append(f"the loops were compiled for this forecast, which took {loading:.0f} s: once on this machine")
        if any(tensor.resolved.merger.whole_matrices and is_matrix(tensor.shape) for tensor in plan.tensors):
            notes.append("what is computed of whole matrices isn't counted, and may take much longer than everything else")
        if any(_of_prompts(tensor.inputs) for tensor in _made(plan)):
            notes.append("what computes the routers of the prompts isn't counted")
        costs = bench.costs(random_places)
        cached, disk = page_cache(plan, random_places)
        flush = flush_rate(written)
    at_a_time = min(plan.n_process, cores())
    reading, computing, writing = (seconds / at_a_time for seconds in costs)
    computing += _pursuing(plan)
    if cached is not None and cached < 1 and disk:
        reading += plan.bytes_in * (1 - cached) / disk
    starting = _PYTHON + max(planning, min(loading, 1.0))  # a process loads the loops while this one plans
    busy = reading + computing + writing
    flushing = max(0.0, plan.bytes_out / flush - busy) if flush else 0.0
    return Forecast(
        starting=starting,
        reading=reading,
        computing=computing,
        writing=writing,
        flushing=flushing,
        cached=cached,
        notes=tuple(notes),
    )


# --- pieces of the merge -----------------------------------------------------------------------------------------------


@dataclass
class _Cost:
    """Seconds spent, and the number of elements that they were spent on."""

    reading: float = 0.0
    writing: float = 0.0
    all: float = 0.0
    elements: int = 0


@dataclass
class _Timed:
    """A Source that gives the elements of another from element `start` on, and measures how long that takes."""

    source: Source
    start: int
    cost: _Cost
    dtypes: Sequence[Any] = field(init=False)

    def __post_init__(self) -> None:
        self.dtypes = self.source.dtypes

    def read(self, number: int, start: int, count: int) -> Any:
        begun = time.perf_counter()
        try:
            return self.source.read(number, self.start + start, count)
        finally:
            self.cost.reading += time.perf_counter() - begun

    def sample(self, number: int, clusters: int, step: int, width: int) -> Any:
        begun = time.perf_counter()
        try:
            return self.source.sample(number, clusters, step, width)
        finally:
            self.cost.reading += time.perf_counter() - begun


class _Bench:
    """Merges pieces of a plan as a worker does, discards the results, and measures how long that takes."""

    def __init__(self, plan: Plan, files: Files, written: IO[bytes] | None):
        self._plan, self._files, self._written = plan, files, written
        self._backends, self._scratch = Backends(plan.engine), Scratch()
        self._at = 0
        self._kinds: dict[object, list[TensorPlan]] = {}
        left_out = {id(one) for one in _made(plan) if _pursuits(one.inputs) or _of_prompts(one.inputs)}
        for tensor in [plan.tensors[number] for number in dict.fromkeys(piece.tensor for piece in plan.pieces)]:
            if tensor.merged and id(tensor) not in left_out:
                self._kinds.setdefault(_kind(tensor), []).append(tensor)

    def load(self) -> float:
        """Return the seconds until the first elements of every kind are merged, while loops are loaded or compiled."""
        begun = time.perf_counter()
        try:
            self._plan.engine.settle()
        except Exception as error:
            raise WorkError(f"--device {self._plan.engine.device}: can't be used here ({error})") from error
        for tensors in self._kinds.values():
            self._merge(min(tensors, key=lambda tensor: tensor.size), _Cost(), 0, 1 << 10)
        return time.perf_counter() - begun

    def costs(self, places: random.Random) -> tuple[float, float, float]:
        """Return the seconds that one worker alone takes for the whole plan: reading from the page cache, computing,
        writing."""
        sizes = {kind: sum(tensor.size for tensor in tensors) for kind, tensors in self._kinds.items()}
        tried = sorted(sizes, key=lambda kind: -sizes[kind])[:4]  # others are taken for the average of these
        all_of = sum(sizes.values())
        shown = sum(sizes[kind] for kind in tried)
        total = np.zeros(3)
        for kind in tried:
            tensors = self._kinds[kind]
            ends = list(accumulate(tensor.size for tensor in tensors))  # those of many small tensors take time to add up
            found: list[list[float]] = []
            end = time.perf_counter() + SECONDS * sizes[kind] / shown
            while not found or (time.perf_counter() < end and len(found) < 50):
                (number,) = places.choices(range(len(tensors)), cum_weights=ends)
                tensor, its = tensors[number], tensors[number : number + MOST_PIECES]
                inputs = [entry.dtype.itemsize for entry in tensor.inputs]
                count = min(tensor.size, PIECE // sum(inputs))
                cost = _Cost()
                self._begin_again()
                most = self._plan.engine.budget.together
                group = next(groups(((one, Piece(0, 0, one.size)) for one in its), most))
                if len(group) > 1 and suits(joined(group), self._backends.of(tensor)):
                    self._merge_together(group, cost)
                else:
                    self._merge(tensor, cost, places.randrange(tensor.size - count + 1), count)
                computing = cost.all - cost.reading - cost.writing
                found.append([seconds / cost.elements for seconds in (cost.reading, computing, cost.writing)])
            total += np.median(found, axis=0) * sizes[kind] * all_of / shown
        reading, computing, writing = map(float, total)
        return reading, computing, writing

    def _merge(self, tensor: TensorPlan, cost: _Cost, start: int, count: int) -> None:
        """Merge `count` elements from `start` on, as if they were the whole tensor."""
        unit, row = (tensor.scales.unit, tensor.shape[-1]) if tensor.scales is not None else (BLOCK, 1)
        start = start // unit * unit
        count = min(-(-count // row) * row, tensor.size - start)
        begun = time.perf_counter()
        piece = Piece(0, start, start + count)
        keep = self._plan.engine.budget.resident if tensor.resolved.measures else 0
        backend = self._backends.of(tensor)
        source = FileSource(tensor, backend, self._files, piece=piece, keep=keep, scratch=self._scratch)
        self._measure(tensor, source, cost, piece, begun)

    def _merge_together(self, group: Pieces, cost: _Cost) -> None:
        """Merge small tensors as a worker does."""
        begun, one = time.perf_counter(), joined(group)
        self._measure(one, JoinedSource(group, self._files, self._scratch), cost, Piece(0, 0, one.size), begun)

    def _measure(self, tensor: TensorPlan, source: Source, cost: _Cost, piece: Piece, begun: float) -> None:
        """Add to `cost` what is spent on merging what the source has of a piece. begun: when the source was begun."""
        cost.reading += time.perf_counter() - begun
        start, count = piece.start, piece.stop - piece.start
        backend, checksum = self._backends.of(tensor), xxhash.xxh3_128()
        window = dataclasses.replace(tensor, shape=(count,))
        with backend.at_work():

            def write(raw: np.ndarray, _: int) -> None:
                fetched = time.perf_counter()
                checksum.update(raw.view(np.uint8).data)
                self._write(raw)
                cost.writing += time.perf_counter() - fetched

            take = write if tensor.scales is None else Encoder(tensor, piece, write, write, self._scratch).add
            for stored, first in merge_tensor(window, _Timed(source, start, cost), backend).merged():
                take(backend.fetch(stored)(), start + first)
        cost.all += time.perf_counter() - begun
        cost.elements += count

    def _begin_again(self) -> None:
        """Empty the file if much has been written to it: writing new pages is what takes time."""
        if self._written is not None and self._at > WRITTEN:
            os.ftruncate(self._written.fileno(), 0)
            self._at = 0

    def _write(self, raw: np.ndarray) -> None:
        if self._written is None:
            return
        try:
            os.pwrite(self._written.fileno(), raw.view(np.uint8).data, self._at)
        except OSError:  # the disk is full, for one; the merge would say so
            self._written = None
        self._at += raw.nbytes


def _made(plan: Plan) -> list[TensorPlan]:
    """Return the tensors that are made of others than stored ones: none of most models."""
    return [tensor for tensor in plan.tensors if [entry for entry in tensor.inputs if not isinstance(entry, STORED)]]


def _pursuits(entries: Sequence[TensorEntry]) -> list[Pursuit]:
    """Return the pursuits that give coefficients for rows of tensors; they take far longer than a forecast may."""
    made = [entry for entry in entries if not isinstance(entry, STORED)]
    own = [entry.how for entry in made if isinstance(entry, CompletedEntry) and isinstance(entry.how, Pursuit)]
    return own + [one for entry in made for one in _pursuits(entry.made_of)]


def _of_prompts(entries: Sequence[TensorEntry]) -> bool:
    """Return whether tensors have values that only the merge itself computes (gates.py), so that a forecast has none."""
    return any(isinstance(entry, DrawnEntry) and entry.kind == "values" for entry in entries)


def _pursuing(plan: Plan) -> float:
    """Return the seconds that all pursuits take, for the inner products alone: the rest is little beside them."""
    pursuits = [one for tensor in _made(plan) for one in _pursuits(tensor.inputs)]
    products = sum(one.k * one.targets.shape[0] * math.prod(one.atoms.shape) for one in pursuits)
    if not products:
        return 0.0
    width = pursuits[0].atoms.shape[1]
    atoms, targets = np.ones((1 << 10, width), np.float32), np.ones((width, together(width, pursuits[0].k)), np.float32)
    with threadpool_limits(1, "blas"):
        begun = time.perf_counter()
        for _ in range(3):
            np.abs(atoms @ targets).argmax(axis=0)
        seconds = (time.perf_counter() - begun) / 3
    return products * seconds / (atoms.size * targets.shape[1]) / cores()


def _kind(tensor: TensorPlan) -> object:
    """Return a key that is equal for tensors that take about the same time per element."""
    return tensor.dtype, tensor.scales is None, *((entry.dtype, entry.scattered, entry.computed) for entry in tensor.inputs)
