"""Compute with Paddle on the CPU: formulas run in Paddle; conversions, masks and measurements run in NumPy's loops.

Paddle's operations would take a pass over memory for every step of a hash or a histogram (a mask takes 67 nanoseconds an
element instead of a third of one). Going from a Paddle tensor to NumPy and back copies a block within the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..dtypes import DType
from .backend import Formula
from .budget import DEFAULT_BUDGET, MemoryBudget
from .masks import Key
from .np_backend import NumpyBackend
from .pd_backend import PaddleBackend


class PaddleOnHost(PaddleBackend):
    """Compute on the CPU, in memory that Paddle shares with NumPy. compute, budget: as in NumpyBackend."""

    def __init__(self, compute: str, budget: MemoryBudget = DEFAULT_BUDGET):
        super().__init__(compute, "cpu", 0, budget)
        self._loops = NumpyBackend(compute, budget)

    def block(self, models: int) -> int:
        return self._loops.block(models)

    def mask_constant(self, values: np.ndarray) -> Any:
        return values

    def load(self, raws: Sequence[Any], dtypes: Sequence[DType], based: bool) -> tuple[Any, Any, list[Any]]:
        arrays = [
            raw if isinstance(raw, np.ndarray) else raw.numpy().view(dtype.raw)
            for raw, dtype in zip(raws, dtypes, strict=True)
        ]
        x, base, bad = self._loops.load(arrays, dtypes, based)
        return [self.constant(row) for row in x], None if base is None else self.constant(base), bad

    def store(self, values: Any, dtype: DType) -> tuple[Any, Any]:
        raw, bad = self._loops.store(values.numpy(), dtype)
        return self.put(raw, dtype), bad

    def apply_masked(self, formula: Formula, x: Any, key: Key, *args: Any) -> Any:
        return self.constant(self._loops.apply_masked(formula, x.numpy(), key, *args))

    def add_bins(self, bins: Formula, x: Any, counts: np.ndarray) -> None:
        self._loops.add_bins(bins, x.numpy(), counts)

    def add_magnitudes(self, x: Any, unit: float, sums: np.ndarray) -> None:
        self._loops.add_magnitudes(x.numpy(), unit, sums)

    def add_gram(self, x: Any, gram: np.ndarray) -> None:
        self._loops.add_gram(np.stack([row.numpy() for row in x]), gram)

    def count_active(self, x: Any, epsilon: float, counts: np.ndarray) -> None:
        self._loops.count_active(np.stack([row.numpy() for row in x]), self._loops.scalar(epsilon), counts)

    def count_equal(self, x: Any, value: Any) -> int:
        return self._loops.count_equal(x.numpy(), value)

    def count_between(
        self, x: Any, bounds: np.ndarray, stride: int, counts: np.ndarray, sums: np.ndarray, values: np.ndarray
    ) -> None:
        self._loops.count_between(x.numpy(), bounds, stride, counts, sums, values)
