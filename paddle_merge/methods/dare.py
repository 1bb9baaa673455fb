"""DARE: drop each element of a task vector at random, scale the rest up to keep the mean (Yu et al. 2024, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backends.backend import Backend
from ..backends.budget import MemoryBudget
from ..backends.formula import formula
from ..backends.masks import FINEST, block_key, keep_limit, mask_key
from .shared.base import Tensor


@formula(kernel="sparsifiers.dare")
def dare(xp: Any, x: Any, hashes: Any, limits: Any, scales: Any) -> Any:
    """x (n,), hashes (n,), limits and scales (1,) -> (n,): x * scale where hash <= limit, else 0 (NaN, Inf stay visible)."""
    return x * ((hashes <= limits).astype(x.dtype) * scales)


@dataclass(frozen=True)
class Dare:
    """density: the probability of keeping an element, in (0, 1]; the paper's drop rate is 1 - density.
    rescale: divide what is kept by density.
    """

    density: float = 0.7
    rescale: bool = True

    measures = False
    random = True

    def problems(self) -> list[str]:
        return density_problems(self.density, FINEST)

    def memory(self, models: int, size: int, itemsize: int, budget: MemoryBudget) -> int:
        return 0

    def prepare(self, tensor: Tensor, backend: Backend) -> Sequence[Any]:
        scale = 1.0 / self.density if self.rescale else 1.0
        keys = [mask_key(tensor.seed, model, tensor.name) for model in range(tensor.models)]
        limits = backend.mask_constant(np.array([keep_limit(self.density)]))
        scales = backend.mask_constant(np.array([scale], backend.dtype))
        return [(key, limits, scales) for key in keys]

    def apply(self, x: Any, start: int, state: Any, backend: Backend) -> Any:
        key, limits, scales = state
        return backend.apply_masked(dare, x, block_key(key, start), limits, scales)


def density_problems(density: float, least: float = 0.0) -> list[str]:
    """Why this is not a fraction of elements to keep. least: the smallest that random masks can tell from 0."""
    if 0.0 < density < least:
        return [f"--reserve_p {density:g} keeps less than one element of 2**32, which masks can't tell from none; raise it"]
    if 0.0 < density <= 1.0:
        return []
    if density == 0.0:
        return ["--reserve_p 0 keeps nothing of the models; it must be greater than 0 and at most 1"]
    return [f"--reserve_p {density:g} is the fraction of elements to keep: greater than 0 and at most 1"]
