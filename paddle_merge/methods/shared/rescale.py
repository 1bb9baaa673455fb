"""Restore a tensor's L1 norm, as mergekit does: multiply what a sparsifier keeps by sum |x| / sum |kept|.

Where elements of a large tensor are dropped at random, the factor is nearly 1 / density. For a small tensor, such as a norm
or a bias, it depends on which elements happen to be kept: with 4 elements of which the largest is dropped it may be 15.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...backends.backend import Backend
from .base import Tensor

UNIT = 2.0**-64  # magnitudes are added up in these, so that no sum of finite numbers leaves float64
_LEAST = 1e-7 * UNIT


def l1_factors(
    tensor: Tensor, backend: Backend, models: Sequence[int], sparsify: Callable[[int, Any, int], Any]
) -> dict[int, float]:
    """Return, for each of the models, sum |x| / sum |kept| in float64; 1 where a sum is below 1e-7 or not finite.

    sparsify(model, x, start): what is kept of a block x (n,) that begins at element `start`; may reuse x's memory. Reads the
    tensor once, and not at all if there are no models.
    """
    sums = {model: (np.zeros(1), np.zeros(1)) for model in models}
    for start, x in tensor.deltas() if models else ():
        for model, (whole, kept) in sums.items():
            backend.add_magnitudes(x[model], UNIT, whole)
            backend.add_magnitudes(sparsify(model, x[model], start), UNIT, kept)
    return {model: _ratio(float(whole[0]), float(kept[0])) for model, (whole, kept) in sums.items()}


def _ratio(whole: float, kept: float) -> float:
    if min(whole, kept) < _LEAST or not math.isfinite(whole) or not math.isfinite(kept):  # a NaN must not spread
        return 1.0
    return whole / kept
