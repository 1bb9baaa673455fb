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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backends.backend import Backend
from ..backends.budget import MemoryBudget
from ..backends.formula import formula
from ..backends.masks import keep_limit, mask_key
from .shared.base import Tensor
from .shared.rank_masks import Kept, keep_nothing
from .shared.rescale import l1_factors
from .shared.rows import SORTED


@formula(kernel="sparsifiers.pick")
def pick(xp: Any, x: Any, kept: Any, factor: Any) -> Any:
    """x (n,), kept (n,) of 0 and 1 -> (n,): x * factor where kept, else 0 (NaN stays visible)."""
    return x * (kept.astype(x.dtype) * factor)


def keep_probabilities(length: int, density: float, epsilon: float) -> Any:
    """(length,) float64: by ascending rank."""
    if length == 1:
        return np.full(1, density)
    return density - epsilon + np.arange(length) / (length - 1) * (2 * epsilon)


def axes_of_rows(shape: tuple[int, ...], transposed: bool) -> tuple[int, int, int]:
    """(outer, length, inner): the axes before the one that lines run along, that one, and those behind it.

    transposed: whether a matrix is [in, out].
    """
    if len(shape) < 2:
        return 1, math.prod(shape), 1
    axis = 0 if transposed and len(shape) == 2 else 1
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

    def memory(self, models: int, size: int, itemsize: int, budget: MemoryBudget) -> int:
        drawn = len(self._drawn)
        return drawn * (size // 8 + 1) + min(drawn * size * itemsize, budget.selecting) + min(size, SORTED) * (itemsize + 8)

    def row_memory(self, models: int, shape: tuple[int, ...], transposed: bool, itemsize: int) -> int:
        """What lines take that are longer than what is sorted together: one of each model, and its order; its limits,
        by rank and by element."""
        length = axes_of_rows(shape, transposed)[1]
        return length * (len(self._drawn) * itemsize + itemsize + 8 + 8 + 4 + 8 + 4 + 1)

    def prepare(self, tensor: Tensor, backend: Backend) -> Sequence[Any]:
        """Per model (bits, factor); what is kept where that is nothing; or None where it is all."""
        from .shared.row_ranks import keep_by_rank  # and with it Numba

        axes = axes_of_rows(tensor.shape, tensor.transposed)
        draws = {}
        for model in self._drawn:
            limits = keep_limit(keep_probabilities(axes[1], self.density[model], self.epsilon[model]))
            draws[model] = mask_key(tensor.seed, model, tensor.name), limits
        bits = keep_by_rank(tensor, backend, axes, draws)
        one = backend.scalar(1.0)
        states: list[Any] = [None if density > 0.0 else keep_nothing(tensor, backend) for density in self.density]
        for model, kept in bits.items():
            states[model] = kept, one
        if self.rescale:
            drawn = list(bits)
            factors = l1_factors(
                tensor, backend, drawn, lambda model, x, start: self.apply(x, start, states[model], backend)
            )
            for model, factor in factors.items():
                states[model] = bits[model], backend.scalar(factor)
        return states

    def apply(self, x: Any, start: int, state: Any, backend: Backend) -> Any:
        if state is None:
            return x
        if isinstance(state, Kept):
            return state.apply(x, start, backend)
        bits, factor = state
        stop = start + x.shape[0]  # blocks begin at multiples of 8
        kept = np.unpackbits(bits[start // 8 : -(-stop // 8)], count=stop - start)
        return backend.apply(pick, x, backend.constant(kept), factor)
