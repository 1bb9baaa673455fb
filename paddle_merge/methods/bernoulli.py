"""DARE as mergekit does it: drop each element of a task vector at random, then restore the tensor's L1 norm (the paper, and
dare.py, divide what is kept by its probability)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backends.backend import Backend
from ..backends.budget import MemoryBudget
from ..backends.masks import block_key, keep_limit, mask_key
from .dare import dare
from .shared.base import Tensor
from .shared.rank_masks import Kept, keep_nothing
from .shared.rescale import l1_factors


@dataclass(frozen=True)
class Bernoulli:
    """density: of each model, the probability of keeping an element; from 1 on all are kept, from 0 down none.
    rescale: restore the L1 norm."""

    density: tuple[float, ...]
    rescale: bool = True

    random = True

    @property
    def measures(self) -> bool:
        return self.rescale and any(0.0 < density < 1.0 for density in self.density)

    def problems(self) -> list[str]:
        return []

    def memory(self, models: int, size: int, itemsize: int, budget: MemoryBudget) -> int:
        return 0

    def prepare(self, tensor: Tensor, backend: Backend) -> Sequence[Any]:
        """Per model what `apply` takes of dare, what is kept where that is nothing, or None where it is all."""
        one = np.ones(1, backend.dtype)
        states: list[Any] = []
        for model, density in enumerate(self.density):
            if 0.0 < density < 1.0:
                limits = backend.mask_constant(np.array([keep_limit(density)]))
                states.append((mask_key(tensor.seed, model, tensor.name), limits, backend.mask_constant(one)))
            else:
                states.append(None if density >= 1.0 else keep_nothing(tensor, backend))
        if self.rescale:
            some = [model for model, density in enumerate(self.density) if 0.0 < density < 1.0]
            factors = l1_factors(tensor, backend, some, lambda model, x, start: self.apply(x, start, states[model], backend))
            for model, factor in factors.items():
                states[model] = (*states[model][:2], backend.mask_constant(one * backend.dtype.type(factor)))
        return states

    def apply(self, x: Any, start: int, state: Any, backend: Backend) -> Any:
        if state is None:
            return x
        if isinstance(state, Kept):
            return state.apply(x, start, backend)
        key, limits, scales = state
        return backend.apply_masked(dare, x, block_key(key, start), limits, scales)
