"""Spherical linear interpolation between two models (Shoemake 1985), from the first (t = 0) to the second (t = 1).

The angle is that between the two whole tensors (between their task vectors, with a base model); the coefficients then act
on the tensors as they are, not on unit vectors. Nearly parallel tensors are interpolated linearly, as in PaddleNLP.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..backends.backend import Backend
from ..records import record
from .shared.base import Merger, Tensor, linear

_SMALL = 2.0**-530  # the largest float64 times this can be squared, and norms that leave float64 stay above normalize_eps


def coefficients(gram: Any, t: float, normalize_eps: float, dot_threshold: float) -> tuple[float, float]:
    """Return the factors of the two tensors: sin((1 - t) angle) / sin(angle) and sin(t angle) / sin(angle).

    gram: (2, 2) float64 dot products. normalize_eps: a norm up to this is taken as 1. dot_threshold: beyond this |cosine|
    the interpolation is linear.
    """
    norms = [math.sqrt(float(gram[k][k])) for k in (0, 1)]
    norms = [norm if norm > normalize_eps else 1.0 for norm in norms]
    cosine = float(gram[0][1]) / (norms[0] * norms[1])
    if not abs(cosine) <= dot_threshold:  # NaN as well
        return 1.0 - t, t
    angle = math.acos(min(1.0, max(-1.0, cosine)))
    if math.sin(angle) == 0.0:
        return 1.0 - t, t
    return math.sin((1.0 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)


@record(frozen=True)
class Slerp(Merger):
    """Interpolates along the arc between two models.

    t: from 0, the first model, to 1, the second. The others as in `coefficients`.
    """

    t: float = 0.5
    normalize_eps: float = 1e-8
    dot_threshold: float = 0.9995

    @property
    def measures(self) -> bool:
        return True

    def effective_weights(self, models: int) -> Sequence[float]:
        return [1.0 - self.t, self.t]

    def prepare(self, tensor: Tensor, backend: Backend) -> Any:
        gram = np.zeros((2, 2))
        for _, x in tensor.sparsified():
            backend.add_gram(x, gram)
        if not tensor.narrow and not np.isfinite(gram).all():  # squares leave float64, which angles needn't; or NaN and Inf
            factors = [1.0 if math.isfinite(gram[k, k]) else _SMALL for k in (0, 1)]
            gram = np.zeros((2, 2))
            for _, x in tensor.sparsified():
                backend.add_gram(backend.stacked([row * factor for row, factor in zip(x, factors, strict=True)]), gram)
        return backend.array(coefficients(gram, self.t, self.normalize_eps, self.dot_threshold))

    def apply(self, x: Any, start: int, state: Any, backend: Backend) -> Any:
        return backend.apply(linear, x, state)
