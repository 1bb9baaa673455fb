"""NumPy blocks on the CPU, with Numba loops for everything that touches each element."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import bits, kernels
from ..dtypes import BFLOAT16, FLOAT16, DType
from ..masks import Key, hash_block

if TYPE_CHECKING:
    from ..select import Bracket

_LOAD = {BFLOAT16: bits.load_bfloat16, FLOAT16: bits.load_float16}
_STORE = {BFLOAT16: bits.store_bfloat16, FLOAT16: bits.store_float16}


class NumpyBackend:
    """The words that methods and blocks are written in, for one compute dtype ("float32" or "float64")."""

    def __init__(self, compute: str):
        self.dtype: Any = np.dtype(compute)
        self._nothing = np.empty(0, self.dtype)

    # --- making arrays

    def empty(self, *shape: int) -> np.ndarray:
        return np.empty(shape, self.dtype)

    def zeros(self, *shape: int) -> np.ndarray:
        return np.zeros(shape, self.dtype)

    def array(self, values: Sequence[float]) -> np.ndarray:
        return np.array(values, self.dtype)

    def scalar(self, value: float) -> Any:
        return self.dtype.type(value)

    def zeros_float64(self, shape: tuple[int, ...]) -> np.ndarray:
        return np.zeros(shape, np.float64)

    def zeros_counts(self, bins: int, total: int) -> np.ndarray:
        """Counters that can't overflow while they count `total` elements."""
        return np.zeros(bins, np.uint32 if total < 2**32 else np.uint64)

    # --- the way in and the way out

    def load(self, raw: np.ndarray, dtype: DType, out: np.ndarray, base: np.ndarray | None = None) -> bool:
        """Storage bits raw (n,) -> out (n,) in compute dtype, less base (n,). Returns whether raw holds a NaN or Inf."""
        return bool(_LOAD.get(dtype, bits.load_float)(raw, self._nothing if base is None else base, out))

    def store(self, values: np.ndarray, raw: np.ndarray, dtype: DType) -> bool:
        """values (n,) -> storage bits raw (n,), rounded once to nearest even. Returns whether any is not finite there."""
        if values.dtype == np.float64 and dtype in _STORE:
            values, exact = np.empty(values.shape, np.float32), values
            bits.round_to_odd(exact, values)
        return bool(_STORE.get(dtype, bits.store_float)(values, raw))

    def add_scaled(self, base: np.ndarray, x: np.ndarray, scale: float) -> np.ndarray:
        """base + scale * x, in x's memory."""
        kernels.add_scaled(base, x, self.scalar(scale))
        return x

    # --- formulas

    def apply(self, formula: Callable[..., Any], x: np.ndarray, *args: Any) -> np.ndarray:
        """The formula of x, by its loop in kernels.py if there is one: (models, n) -> (n,), or (n,) in place."""
        out = x[0] if x.ndim == 2 else x
        loop = getattr(kernels, formula.__name__, None)
        if loop is None:
            out[...] = formula(np, x, *args)
        else:
            loop(x, *args)
        return out

    def apply_masked(self, formula: Callable[..., Any], x: np.ndarray, key: Key, *args: Any) -> np.ndarray:
        """The same for a formula of x (n,) and its elements' hashes, which a loop computes as it goes."""
        loop = getattr(kernels, formula.__name__, None)
        if loop is None:
            x[...] = formula(np, x, hash_block(key, 0, x.size), *args)
        else:
            loop(x, np.uint32(key[0]), np.uint32(key[1]), *args)
        return x

    # --- measuring

    def elected_balance(self, x: np.ndarray, weights: np.ndarray, by_count: bool) -> int:
        """x (models, n): the number of elements that elect plus, less those that elect minus (methods/ties.py)."""
        return int(kernels.elected_balance(x, weights, by_count))

    def add_bins(self, x: np.ndarray, counts: np.ndarray) -> None:
        """counts (bins,) += the histogram of x (n,) over methods.magprune.magnitude_bins."""
        kernels.add_bins(x, counts)

    def add_gram(self, x: np.ndarray, gram: np.ndarray) -> None:
        """gram (models, models) float64 += x @ x.T, x (models, n)."""
        kernels.add_gram(x, gram)

    def count_between(self, x: np.ndarray, search: Bracket) -> None:
        """Count and collect x (n,) into the search."""
        kernels.count_between(x, search.bounds, search.stride, search.counts, search.sums, search.values)
