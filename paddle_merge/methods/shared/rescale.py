"""mergekit's rescaling: what a sparsifier keeps of a tensor is multiplied until its L1 norm is the whole tensor's.

Of a large tensor that is nearly 1 / density where elements are dropped at random. Of a small one, such as a norm or a bias,
it depends on which elements happen to be kept: 4 of which the largest is dropped may come out 15 times as large.
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
    """For each of the models sum |x| / sum |kept|, in float64; 1 where either sum is below 1e-7 or the ratio is not finite.

    sparsify(model, x, start): what is kept of a block of x; may reuse its memory. Reads the tensor once.
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
