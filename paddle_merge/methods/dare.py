"""DARE: drop each element of a task vector at random with the same probability (Yu et al. 2024, section 3.1).

The paper, and PaddleNLP, then divide what is kept by the probability of keeping it, so that the mean stays. mergekit
restores the tensor's L1 norm instead. paddlenlp.py and mergekit.py say which goes with which method.

How the seed reaches the mask: --seed (recipe/fields.py), or a recipe's `seed`, is Recipe.seed (recipe/request.py makes it in
to_recipe.py), then TensorPlan.seed (plan/assemble.py). mask_key(seed, model, name) gives each model and tensor its key, that
methods see as tensor.mask_key(model); the name is TensorPlan.masked_as, which is the embedding's name for a tied lm_head;
block_key counts the elements before a block; an element is kept where the hash of its index under the key is at most
keep_limit(density) (backends/masks.py). So a mask doesn't depend on blocks, workers or backends.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..backends.backend import Backend
from ..backends.formula import formula
from ..backends.masks import Key, block_key, keep_limit
from ..records import record
from .shared.base import Tensor
from .shared.rank_masks import keep_nothing
from .shared.sparsify import Keep, Mask


@formula(kernel="sparsifiers.dare")
def dare(xp: Any, x: Any, hashes: Any, limits: Any, scales: Any) -> Any:
    """Return x * scale where hash <= limit, else 0, (n,); NaN and Inf stay visible.

    x, hashes: (n,). limits, scales: (1,), or (n,) if each element has its own.
    """
    return x * ((hashes <= limits).astype(x.dtype) * scales)


@record(frozen=True)
class Hashed:
    """Keeps elements whose hash under the key is at most the limit. limits, scales: (1,), or (size,) of each element."""

    key: Key
    limits: Any
    scales: Any

    def apply(self, x: Any, start: int, backend: Backend) -> Any:
        limits, scales = self.limits, self.scales
        if limits.shape[0] > 1:
            stop = start + x.shape[0]
            limits, scales = limits[start:stop], scales[start:stop]
        return backend.apply_masked(dare, x, block_key(self.key, start), limits, scales)

    def scaled(self, factor: float, backend: Backend) -> Hashed:
        return dataclasses.replace(self, scales=self.scales * backend.scalar(factor))


@functools.lru_cache
def _limit(density: float) -> Any:
    """Return keep_limit(density), which takes long for the few densities that many tensors have."""
    return keep_limit(density)


@record(frozen=True)
class Bernoulli(Keep):
    """Keep each element with probability `density`; the paper's drop rate is 1 - density."""

    random = True
    has_probabilities = True

    def masks(self, tensor: Tensor, backend: Backend, divide: bool) -> Sequence[Mask | None]:
        found: list[Mask | None] = []
        constants: dict[float, tuple[Any, Any]] = {}
        for model in range(tensor.models):
            density = self.density_of(model)
            if 0.0 < density < 1.0:
                scale = 1.0 / density if divide else 1.0
                if density not in constants:
                    limits, scales = np.array([_limit(density)]), np.array([scale], backend.dtype)
                    constants[density] = backend.mask_constant(limits), backend.mask_constant(scales)
                found.append(Hashed(tensor.mask_key(model), *constants[density]))
            else:
                found.append(None if density >= 1.0 else keep_nothing(tensor, backend))
        return found
