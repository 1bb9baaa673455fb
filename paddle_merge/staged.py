"""Tensors of an earlier merge of the same recipe: merged block by block whenever they are read, and never written."""

from __future__ import annotations

import numpy as np

from .backends.np_backend import NumpyBackend
from .blocks import FileSource, Road
from .files import Files, Scratch
from .plan import Piece, TensorPlan
from .readers import Staged

STEP = 1 << 16  # elements that are merged together


class StagedTensor:
    """The elements as they would be read from the earlier merge's output: rounded to its dtype.

    What its method measures is measured when this is made. Raises WorkError, as Files.read does, then and when it is read.
    """

    def __init__(self, staged: Staged, files: Files):
        plan: TensorPlan = staged.plan
        whole, backend = Piece(0, 0, plan.size), NumpyBackend(plan.compute)
        source = FileSource(plan, whole, backend.block(len(plan.sources)), 0, files, Scratch())
        self.dtype, self._size = plan.dtype, plan.size
        self._road = Road(plan, whole, staged.seed, source, backend, lambda _: None)
        self._backend = backend
        with backend.at_work():
            self._road.prepare()
        self._block, self._number = np.empty(min(STEP, plan.size), plan.dtype.raw), -1

    def read(self, start: int, out: np.ndarray) -> None:
        """Fill out, flat, with the elements from index `start` on."""
        while len(out):
            number, first = divmod(start, STEP)
            if number != self._number:
                self._merge(number)
            part = self._block[first : min(STEP, self._size - number * STEP)][: len(out)]
            out[: len(part)] = part
            out, start = out[len(part) :], start + len(part)

    def _merge(self, number: int) -> None:
        first = number * STEP
        with self._backend.at_work():
            for stored, start in self._road.merged(first, min(first + STEP, self._size)):
                self._block[start - first : start - first + len(stored)] = stored
        self._number = number
