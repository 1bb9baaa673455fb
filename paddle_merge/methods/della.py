"""DELLA's sampling as mergekit does it (Deep et al. 2024, section 3.1): drop at random, small elements more readily than
large ones, then restore the tensor's L1 norm (magprune.py: PaddleNLP's, with ranks over the whole tensor).

Ranks are over each row of torch's matrix [out, in], the weights of one output: the element of rank r by magnitude (of n, 0
is the smallest) is kept with probability density - epsilon + 2 epsilon r / (n - 1). So epsilon is half the width of the
range. A vector is one row; in a tensor of more axes lines run along its second one, as in mergekit. Equal magnitudes rank
by their indices (in mergekit by chance). The only element of a line is kept with probability `density`; mergekit fails.

Which elements are kept is decided once, line by line, and held as one bit for each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import kernels_sparse as kernels
from ..engine import Room
from ..masks import keep_limit, mask_key
from . import Tensor
from .l1 import l1_factors
from .magnitude import Kept, keep_nothing

_SORTED = 1 << 18  # elements that are sorted together, or one line


def pick(xp: Any, x: Any, kept: Any, factor: Any) -> Any:
    """x (n,), kept (n,) of 0 and 1 -> (n,): x * factor where kept, else 0 (NaN stays visible)."""
    return x * (kept.astype(x.dtype) * factor)


def keep_probabilities(length: int, density: float, epsilon: float) -> Any:
    """(length,) float64: by ascending rank."""
    if length == 1:
        return np.full(1, density)
    return density - epsilon + np.arange(length) / (length - 1) * (2 * epsilon)


def lines(shape: tuple[int, ...], turned: bool) -> tuple[int, int, int]:
    """(outer, length, inner): the axes before the one that lines run along, that one, and those behind it.

    turned: whether a matrix is [in, out].
    """
    if len(shape) < 2:
        return 1, math.prod(shape), 1
    axis = 0 if turned and len(shape) == 2 else 1
    return math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])


@dataclass(frozen=True)
class Della:
    """density: of each model, the mean probability of keeping an element; from 1 on all are kept, from 0 down none.
    epsilon: of each, how much smaller it is for the smallest, and larger for the largest. rescale: restore the L1 norm."""

    density: tuple[float, ...]
    epsilon: tuple[float, ...]
    rescale: bool = True

    random = True

    @property
    def measures(self) -> bool:
        return bool(self._drawn)

    @property
    def _drawn(self) -> list[int]:
        """The models of which some elements are kept."""
        return [model for model, density in enumerate(self.density) if 0.0 < density < 1.0]

    def problems(self) -> list[str]:
        return []

    def memory(self, models: int, size: int, itemsize: int, room: Room) -> int:
        drawn = len(self._drawn)
        return drawn * (size // 8 + 1) + min(drawn * size * itemsize, room.selecting) + min(size, _SORTED) * (itemsize + 8)

    def line_memory(self, models: int, shape: tuple[int, ...], turned: bool, itemsize: int) -> int:
        """What lines take that are longer than what is sorted together: one of each model, and its order; its limits."""
        length = lines(shape, turned)[1]
        return length * (len(self._drawn) * itemsize + itemsize + 8 + 8 + 4 + 8)

    def prepare(self, tensor: Tensor, backend: Any) -> Sequence[Any]:
        """Per model (bits, factor); what is kept where that is nothing; or None where it is all."""
        states: list[Any] = [None if density > 0.0 else keep_nothing(tensor, backend) for density in self.density]
        bits = {model: np.zeros(-(-tensor.size // 8), np.uint8) for model in self._drawn}
        length = lines(tensor.shape, tensor.turned)[1]
        keys, limits = {}, {}
        for model in bits:
            keys[model] = [np.uint32(word) for word in mask_key(tensor.seed, model, tensor.name)]
            limits[model] = keep_limit(keep_probabilities(length, self.density[model], self.epsilon[model]))
        for panels, elements, step in _panels(tensor, backend, list(bits)):
            for (model, kept), panel in zip(bits.items(), panels, strict=True):
                for some, order in _ordered(panel, tensor.narrow):
                    kernels.keep_ranked(order, elements[some], step, *keys[model], limits[model], kept)
        one = backend.scalar(1.0)
        states = [(bits[model], one) if model in bits else state for model, state in enumerate(states)]
        if self.rescale:
            drawn = list(bits)
            factors = l1_factors(
                tensor, backend, drawn, lambda model, x, start: self.apply(x, start, states[model], backend)
            )
            for model, factor in factors.items():
                states[model] = bits[model], backend.scalar(factor)
        return states

    def apply(self, x: Any, start: int, state: Any, backend: Any) -> Any:
        if state is None:
            return x
        if isinstance(state, Kept):
            return state.apply(x, start, backend)
        bits, factor = state
        stop = start + x.shape[0]  # blocks begin at multiples of 8
        kept = np.unpackbits(bits[start // 8 : -(-stop // 8)], count=stop - start)
        return backend.apply(pick, x, backend.constant(kept), factor)


def _panels(tensor: Tensor, backend: Any, models: Sequence[int]) -> Iterator[tuple[Any, Any, int]]:
    """Whole lines, as many at a time as there is room for: (panels, elements, step). panels (models, outer, length, width):
    |x| of `outer` times `width` lines; elements (outer * width,) int64: the first of each; step: from one to the next.

    Reads the tensor once, unless the lines that lie side by side (all of a turned matrix) are more than there is room for.
    """
    outer, length, inner = lines(tensor.shape, tensor.turned)
    room = max(1, backend.room.selecting // (backend.dtype.itemsize * max(1, len(models) * length)))  # lines
    width = min(inner, room)
    together = min(outer, max(1, room // inner))  # of the outer axes
    for first in range(0, inner if models else 0, width):
        columns = min(width, inner - first)
        panels = np.empty((len(models), together * length, columns), backend.dtype)
        done = 0  # of the outer axes
        for start, x in tensor.deltas():
            rows = [backend.fetch(x[model])() for model in models]
            at, stop = start, start + len(rows[0])
            while at < stop:
                count = min(together, outer - done)
                end = (done + count) * length * inner
                for row, panel in zip(rows, panels, strict=True):
                    kernels.gather(row[at - start : end - start], at, inner, first, panel, done * length)
                if end <= stop:
                    origins = (done + np.arange(count)[:, None]) * (length * inner) + first + np.arange(columns)
                    yield panels[:, : count * length].reshape(-1, count, length, columns), origins.reshape(-1), inner
                    done += count
                at = min(end, stop)


def _ordered(panel: Any, narrow: bool) -> Iterator[tuple[slice, Any]]:
    """panel (outer, length, width) of magnitudes -> for some of the lines at a time: which, and (lines, length) uint64,
    whose low 32 bits are their elements' indices by ascending magnitude, equals by index."""
    outer, length, width = panel.shape
    count = max(1, _SORTED // length)
    for k in range(0, outer * width, count):
        numbers = np.arange(k, min(k + count, outer * width))
        magnitudes = panel[numbers // width, :, numbers % width]
        if narrow:
            order = np.empty(magnitudes.shape, np.uint64)
            kernels.rank_keys(magnitudes, order)
            order.sort(axis=1)
        else:
            order = np.argsort(magnitudes, axis=1, kind="stable").astype(np.uint64)
        yield slice(k, k + count), order
